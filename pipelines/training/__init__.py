"""One pretraining run on Ray Train."""
