"""Reads and writes weights in other formats: the released checkpoints, Hugging Face, ONNX; and writes model cards."""

from groupvit.interop.official import from_hugging_face, from_official, to_hugging_face, to_official

__all__ = ["from_hugging_face", "from_official", "to_hugging_face", "to_official"]
