"""Metrics and their tables."""
