"""Benchmarks: each prints a table and writes its figures with hardware, commit and date."""
