"""Segmentation data sets with masks, one file per data set: its files, class names and background rule."""
