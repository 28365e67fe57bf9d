"""Masks in the encodings of other tools: COCO's run lengths and polygons, Label Studio's brush, outlines of pixels."""
