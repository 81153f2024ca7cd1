"""What goes wrong between ranks, told so that a reader knows where."""

from __future__ import annotations


class GroupError(RuntimeError):
    """Ranks that work on one clip came apart: a rank died, waited too long, or had another clip in hand.

    After it the groups that the rank is in cannot be used again: the pod must be formed anew.
    """


class GroupMismatch(GroupError):
    """Ranks met for different work. Nothing was exchanged yet, so the groups are still good."""
