"""Data sets to slices: the order of samples, and Ray Data that reads in it."""
