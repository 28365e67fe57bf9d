"""Segmentation data sets with masks, one file per data set: where files lie, class names, background rule."""
