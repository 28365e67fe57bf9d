"""Evaluates checkpoints: zero-shot mIoU and accuracy."""
