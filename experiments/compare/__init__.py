"""``dvg compare``: arms of runs side by side, with differences paired by prompt and seed and the intervals they deserve."""
