"""Planners: which grid when."""
