"""The folder of a run: its description, checkpoints and evaluations."""
