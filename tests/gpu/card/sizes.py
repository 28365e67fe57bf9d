"""How large and how long: on a card, and in a rehearsal on the CPU."""

import dataclasses

from groupvit.config import ImageEncoderConfig, ModelConfig, Precision, TextEncoderConfig

TINY = ModelConfig(
    image=ImageEncoderConfig(
        image_size=32,
        patch_size=8,
        width=32,
        depths=(1, 1, 1),
        num_heads=(2, 2, 2),
        num_group_tokens=(8, 4, 0),
        num_output_groups=(8, 4),
    ),
    text=TextEncoderConfig(width=32, depth=1, num_heads=2),
    embedding_dim=32,
    projector_width=64,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The defaults are for a card of 80 GB."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    precision: Precision = "bfloat16"
    """Of the training steps."""
    batches: tuple[int, ...] = (1024, 256, 64)
    """Batch sizes of the training steps, the most important first, if time runs out."""
    middle_batch: int = 256
    """Batch size where one is enough."""
    num_batches: int = 4
    """Number of batches that take turns. Their texts have different lengths."""
    first_steps: int = 20
    """Number of steps that are not part of the rate, where a model is new. Later rows of the model have a third."""
    seconds: float = 2.0
    """Seconds of steps of one rate."""
    steps_one_by_one: int = 6
    """Number of steps before which the device is idle, to see the host's time."""
    profiled_steps: int = 1
    product: int = 8192
    """Side of the matrices of the product that tells what the card does at best."""
    images: int = 96
    """Number of images whose evaluation is measured."""
    image_size: tuple[int, int] = (375, 500)
    window: int = 448
    """Side of the windows of evaluation; the stride is half of it."""
    learning_steps: int = 300
    end_to_end_batch: int = 1024
    end_to_end_steps: int = 40
    reading_processes: int | None = None
    """None: one per core."""


CARD = Sizes()
CARD_QUICK = dataclasses.replace(
    CARD, batches=(256,), first_steps=4, seconds=1.0, images=16, learning_steps=40, end_to_end_steps=10
)
REHEARSAL = Sizes(
    model=TINY,
    precision="float32",
    batches=(8, 4),
    middle_batch=8,
    first_steps=2,
    seconds=0.0,
    steps_one_by_one=1,
    product=256,
    images=4,
    image_size=(48, 64),
    window=32,
    learning_steps=100,
    end_to_end_batch=32,
    end_to_end_steps=6,
    reading_processes=1,
)
REHEARSAL_QUICK = dataclasses.replace(REHEARSAL, batches=(4,), middle_batch=4, learning_steps=40)


def sizes_for(*, is_gpu: bool, quick: bool) -> Sizes:
    if is_gpu:
        return CARD_QUICK if quick else CARD
    return REHEARSAL_QUICK if quick else REHEARSAL
