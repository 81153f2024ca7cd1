"""Which tokens of a sequence each rank has, so that any number of tokens will do: shares differ by at most one token.

Where runs of tokens stay together they differ by a run at most, and the last rank has those besides that fill none.
"""

from __future__ import annotations

from itertools import accumulate


def shares(num_tokens: int, degree: int, *, spare_last: bool = False, unit: int = 1) -> tuple[int, ...]:
    """Tokens of each of ``degree`` ranks. The first ranks have one more where it does not divide, or the last ones.

    Two sequences side by side, one with ``spare_last``, so give every rank equal sums whenever the degree divides their sum.
    Tokens go in runs of ``unit``, which stay together; the last rank has those that fill none. Raises ValueError for a degree
    below 1.
    """
    if degree < 1:
        raise ValueError(f"degree {degree} must be at least 1")
    least, spare = divmod(num_tokens // unit, degree)
    counts = [(least + 1) * unit] * spare + [least * unit] * (degree - spare)
    if spare_last:
        counts.reverse()
    counts[-1] += num_tokens % unit
    return tuple(counts)


def piece(counts: tuple[int, ...], rank: int) -> slice:
    """Where a rank's share lies in the sequence."""
    ends = tuple(accumulate(counts))
    return slice(ends[rank] - counts[rank], ends[rank])
