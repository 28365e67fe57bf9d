"""Checkpoints in and out: other formats, and MLflow's registry."""
