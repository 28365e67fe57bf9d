"""Weights of others, read and written: the released names, Hugging Face, ONNX, and the card that goes with a model."""

from groupvit.interop.official import from_hugging_face, from_official, to_hugging_face, to_official

__all__ = ["from_hugging_face", "from_official", "to_hugging_face", "to_official"]
