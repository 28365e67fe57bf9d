"""Folders of this machine: names, locks, where to keep files, whether they can be written."""
