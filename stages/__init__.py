"""Pure torch: one clip, one grid after another."""
