"""Turns data sets into slices: the order of samples, and Ray Data that reads in this order."""
