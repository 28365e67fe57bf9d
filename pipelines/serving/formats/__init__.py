"""The files that `groupvit segment` writes, one format per module."""
