"""Samples taken out of a data set at the wish of their owners, and which runs have seen them at which steps."""
