"""Segments images by words, on the command line and in the browser."""
