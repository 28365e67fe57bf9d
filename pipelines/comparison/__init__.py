"""Compares evaluations, and tests whether they differ by more than chance."""
