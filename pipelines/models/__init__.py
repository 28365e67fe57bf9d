"""Imports and exports checkpoints: other formats, and MLflow's registry."""
