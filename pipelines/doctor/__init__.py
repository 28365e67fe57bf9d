"""Checks of this machine or a cluster, before work is given to it: one line per finding, with the fix."""
