"""Checkpoints to zero-shot mIoU and accuracy."""
