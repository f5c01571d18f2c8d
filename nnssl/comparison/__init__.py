"""Comparison of methods on the same cases: paired differences by patient, intervals, tests and verdicts."""
