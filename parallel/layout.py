"""How the ranks of one slice share a clip: each half does one branch of guidance, and all cut the sequence."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.groups import Group, Groups


@dataclass(frozen=True, eq=False)
class Layout:
    """This rank's part in a slice of two or more ranks."""

    whole: Group
    """All ranks of the slice."""
    sequence: Group | None
    """The ranks that share one forward's tokens; None: this rank has them all."""
    branch: int | None
    """With guidance split, the branch of this rank's forward: 0 with the prompt, 1 without. None: both, one after the other."""

    @property
    def num_branches(self) -> int:
        """Branches that one forward of all ranks makes at once."""
        return 1 if self.branch is None else 2

    @property
    def degree(self) -> int:
        """Ranks that share one forward's tokens."""
        return 1 if self.sequence is None else self.sequence.size

    @property
    def key(self) -> tuple[tuple[int, int, int], int | None]:
        """Tells the layouts of one process apart."""
        return self.whole.key, self.branch


def layout(groups: Groups, start: int, width: int, num_branches: int) -> Layout | None:
    """Of the slice of ``width`` ranks from ``start``; None for one rank.

    Two branches of guidance are split first: that is the cheapest width of 2, as only velocities are exchanged.
    """
    whole = groups.slice(start, width)
    if whole is None:
        return None
    if num_branches == 1:
        return Layout(whole, whole, None)
    half = width // 2
    branch = whole.rank // half
    return Layout(whole, groups.slice(start + branch * half, half), branch)
