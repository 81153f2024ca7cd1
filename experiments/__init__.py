"""Specs, tracking, metrics and reports: what a sweep is for."""
