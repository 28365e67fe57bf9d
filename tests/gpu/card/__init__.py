"""What `tests/gpu/check.py` measures and checks on a card, one subject per file."""
