"""Predicts the memory of a training step from the config, without torch: which slice fits a GPU is known before a
worker starts.

The form counts what autograd keeps for the backward pass, layer by layer, and adds the parameters with their
optimiser state, the heads with the losses over the global batch, and the images. The tests compare it with torch's own
count, and with peaks measured on a GPU (docs/gpu/first_look.json).

Shapes: N tokens, C channels, S segments, M group tokens, G groups, K prompts, B images per worker. All numbers are
bytes unless they say otherwise.
"""

import dataclasses
import math

from groupvit.config import ImageEncoderConfig, LossConfig, ModelConfig, TextEncoderConfig
from pipelines.experiments.config import ExperimentConfig

LARGEST_SLICE = 1024
"""Largest slice that is chosen. A larger one was not measured, and an H200 is busy with this one."""
USABLE_SHARE = 0.8
"""Share of a device's memory that a step may fill by prediction. The rest is for CUDA's context and libraries,
fragmentation, batches with long texts, and the error of the prediction."""
TOKENS_PER_CAPTION, TOKENS_PER_PROMPT = 24, 11
"""Tokens of a text on average, with its start and end, as in the measurements. The captions of CC3M are shorter."""
_PACKED = 0.95
"""Share of the places in packed rows that hold a token."""
_FLOAT32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """Where a training worker computes."""

    name: str
    memory: float
    """Bytes: of the whole GPU, or of a worker on CPUs."""
    is_gpu: bool
    has_bfloat16: bool
    """Whether it computes bfloat16 natively."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """How a device holds the numbers of the towers."""

    size: int
    """Bytes of a number in matrix products: 2 in bfloat16, else 4."""
    fused_attention: bool = True
    """Whether attention keeps no matrix of weights. On CPUs, bfloat16 does keep it."""

    @classmethod
    def of(cls, precision: str, *, on_gpu: bool) -> "Numbers":
        narrow = precision == "bfloat16"
        return cls(size=2 if narrow else _FLOAT32, fused_attention=on_gpu or not narrow)


def busy_share(num_slices: int, num_workers: int) -> float:
    """Returns the share of a step in which a worker works: all wait for those that have one slice more."""
    return num_slices / (num_workers * -(-num_slices // num_workers))


def slice_sizes(config: ExperimentConfig) -> list[int]:
    """Returns the slice sizes, ascending, to 1,024, that divide both the batch and a window, and keep the workers busy
    for 90 % of a step."""
    batch, num_workers = config.training.global_batch_size, config.training.max_workers
    common = math.gcd(batch, config.ingest.window_size)
    sizes = [size for size in range(1, min(batch // num_workers, LARGEST_SLICE) + 1) if common % size == 0]
    return [size for size in sizes if busy_share(batch // size, num_workers) >= 0.9] or sizes[:1]


def fits(config: ExperimentConfig, slice_size: int, memory: float, numbers: Numbers) -> bool:
    """Whether a step with slices of this size fits a device that has `memory` for one worker."""
    return step_bytes(config, slice_size, numbers) <= USABLE_SHARE * memory


def step_bytes(config: ExperimentConfig, slice_size: int, numbers: Numbers) -> int:
    """Returns the predicted peak of a training step of one worker."""
    model, loss, training = config.model, config.loss, config.training
    num_slices = -(-training.global_batch_size // slice_size)
    batch = -(-num_slices // training.min_workers) * slice_size
    # Parameters, gradients, two moments, and a copy that products in bfloat16 or the sum of gradients need, which is
    # twice as large if it is exact.
    copies = 5 + (training.ema_decay is not None) + (training.reduce_precision in ("auto", "exact"))
    of_model = num_parameters(model) * _FLOAT32 * copies
    image_bytes = 3 * model.image.image_size**2
    waiting = batch * image_bytes * (_FLOAT32 + 1)  # a step's images, and those of the next one as uint8
    towers = tower_bytes(model, numbers, tokens_per_image(model.text, loss)) + backward_bytes(model.image, numbers)
    return (
        of_model + waiting + head_bytes(model, loss, batch, training.global_batch_size, numbers) + slice_size * towers
    )


def tokens_per_image(text: TextEncoderConfig, loss: LossConfig) -> int:
    """Returns the number of text tokens that are computed for an image."""
    if not text.pack:
        return (1 + loss.num_prompts) * text.context_length
    caption, prompt = (min(tokens, text.context_length) for tokens in (TOKENS_PER_CAPTION, TOKENS_PER_PROMPT))
    return math.ceil((caption + loss.num_prompts * prompt) / _PACKED)


def tower_bytes(model: ModelConfig, numbers: Numbers, text_tokens: int) -> int:
    """Returns what the towers keep for the backward pass for one image and its texts of `text_tokens` tokens."""
    text = model.text
    row = text.context_length if text.pack else text_tokens
    texts = text.depth * _block(text_tokens, text.width, text.num_heads, 4.0, numbers, attended=row)
    return _image(model.image, numbers) + texts + text_tokens * text.width * _FLOAT32


def backward_bytes(image: ImageEncoderConfig, numbers: Numbers) -> int:
    """Returns what the backward pass adds for one image, at most: gradients of the largest block, or its recomputed
    activations."""
    return max(
        _block(tokens, image.width, heads, image.mlp_ratio, numbers)
        for tokens, heads in zip(_tokens(image), image.num_heads, strict=True)
    )


def head_bytes(model: ModelConfig, loss: LossConfig, batch: int, global_batch: int, numbers: Numbers) -> int:
    """Returns what projectors and losses take for a worker's batch, forward and backward, with the towers' features."""
    segments = model.image.num_output_groups[-1] if loss.looks_at_segments else 0
    image_rows, text_rows = 1 + segments, 1 + loss.num_prompts
    features = 2 * _FLOAT32 * (image_rows * model.image.width + text_rows * model.text.width)
    hidden = (5 * _FLOAT32 + numbers.size) * model.projector_width * (image_rows + text_rows)
    compared = 2 + 2 * loss.num_prompts * max(segments, 1)
    return batch * (features + hidden + compared * global_batch * 4 * _FLOAT32)


def num_parameters(model: ModelConfig) -> int:
    """Returns the number of parameters, without biases, norms and other vectors."""
    image, text = model.image, model.text
    width, hidden = image.width, int(image.width * image.token_mixing_ratio)
    # attention and MLP of the pre-assignment, the assignment's four projections, the MLP after it
    grouping = len(image.num_output_groups) * (8 + 4 * image.mlp_ratio) * width**2
    mixing = hidden * (sum(image.num_group_tokens) + sum(image.num_output_groups))
    of_image = (
        sum(image.depths) * (4 + 2 * image.mlp_ratio) * width**2
        + (grouping + mixing)
        + width * (3 * image.patch_size**2 + image.grid_size**2)
    )
    of_text = text.depth * 12 * text.width**2 + text.width * (text.vocab_size + text.context_length)
    heads = model.projector_width * (width + text.width + 2 * model.embedding_dim)
    return int(of_image + of_text + heads)


def _image(image: ImageEncoderConfig, numbers: Numbers) -> int:
    width, size, num_tokens = image.width, numbers.size, image.grid_size**2
    total = num_tokens * (3 * image.patch_size**2 * size + 2 * width * _FLOAT32)  # stem and its norm
    if image.stem == "convolutional":  # levels of half the resolution and, at most, twice the channels
        halvings = image.patch_size.bit_length() - 1
        for level in range(halvings):
            pixels = (image.image_size >> (level + 1)) ** 2
            total += pixels * max(width >> (halvings - 1 - level), 16) * (2 * _FLOAT32 + size)
    segments = num_tokens
    for stage, (tokens, depth, heads) in enumerate(zip(_tokens(image), image.depths, image.num_heads, strict=True)):
        if image.activation_checkpointing:
            total += depth * tokens * width * _FLOAT32
        else:
            total += depth * _block(tokens, width, heads, image.mlp_ratio, numbers)
        if stage < len(image.num_output_groups):
            groups = image.num_output_groups[stage]
            total += _grouping(image, segments, image.num_group_tokens[stage], groups, numbers)
            segments = groups
    return total


def _tokens(image: ImageEncoderConfig) -> list[int]:
    """Returns the number of tokens in the blocks of each stage: segments and group tokens."""
    segments = [image.grid_size**2, *image.num_output_groups]
    return [own + more for own, more in zip(segments, image.num_group_tokens, strict=False)]


def _block(tokens: int, width: int, heads: int, mlp_ratio: float, numbers: Numbers, attended: int | None = None) -> int:
    """A transformer block: the input of each norm in float32; normalised tokens twice, queries, keys, values, what
    attention returns, and the MLP's hidden layer before and after its activation."""
    total = tokens * width * (2 * _FLOAT32 + (6 + 2 * mlp_ratio) * numbers.size)
    if not numbers.fused_attention:
        total += tokens * (attended or tokens) * heads * numbers.size
    return int(total)


def _grouping(image: ImageEncoderConfig, segments: int, tokens: int, groups: int, numbers: Numbers) -> int:
    """A grouping block: the segments, normalised and as keys and values; the groups, about as in a block; their mixing
    over tokens, here and before the stage; and the assignment."""
    width, size = image.width, numbers.size
    hidden = int(width * image.token_mixing_ratio)
    of_segments = (segments + tokens) * width * _FLOAT32 + segments * width * 3 * _FLOAT32
    of_groups = groups * width * (4 * _FLOAT32 + (8 + 4 * image.mlp_ratio) * size)
    mixing = 2 * (2 * width * hidden * size + tokens * width * (_FLOAT32 + size))
    return int(of_segments + of_groups + mixing + 3 * _FLOAT32 * groups * segments)
