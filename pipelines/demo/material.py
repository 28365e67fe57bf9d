"""The material of demo scenes, and which part of it each set of scenes may use."""

from dataclasses import dataclass

from pipelines.demo.compose import Background, Cutout


@dataclass(frozen=True, kw_only=True)
class Material:
    """Cut-outs by noun, and backgrounds. `classes` (without "background") are evaluated. `distractors` appear in
    training only. `unseen` and `validation_backgrounds` are never used in training or calibration.
    """

    name: str
    classes: tuple[str, ...]
    seen: dict[str, list[Cutout]]
    unseen: dict[str, list[Cutout]]
    distractors: dict[str, list[Cutout]]
    training_backgrounds: list[Background]
    calibration_backgrounds: list[Background]
    validation_backgrounds: list[Background]

    @property
    def class_index(self) -> dict[str, int]:
        """Class name → value in the mask. 0 is the background."""
        return {noun: index for index, noun in enumerate(self.classes, start=1)}
