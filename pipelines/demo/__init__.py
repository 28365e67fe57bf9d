"""Runs the whole chain in minutes, on drawn data or on photo cut-outs."""
