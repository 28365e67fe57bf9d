"""Reads lists of image URLs with captions, in any format that they are published in."""
