"""GPUs that a dry run knows by name, and the speed that is estimated for them.

One H200 was measured. The speed of another GPU is the H200's, times the smaller of two ratios: of peak bfloat16 FLOP/s
and of memory bandwidth. docs/performance.md, "What a paper-size run needs", has the reasons and the limits.
"""

import dataclasses

from groupvit.config import ModelConfig
from pipelines.experiments.config import ExperimentConfig
from pipelines.training.memory import Device

GIB = 2**30
_MEASURED = {64: 1044.0, 256: 3264.0, 1024: 6789.0}
"""Images/s of the H200 with the paper's model in bfloat16, by the size of a slice (docs/gpu/first_look.json)."""
IMAGES_PER_SECOND_PER_CORE = 443.0
"""Images that one full core reads per second with the paper's augmentation, as measured (docs/performance.md)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A kind of GPU, by its maker's figures."""

    memory: float
    """GiB that a process can use."""
    tflops: float
    """Peak dense TFLOP/s in bfloat16; without bfloat16, in float32."""
    bandwidth: float
    """Peak memory bandwidth in TB/s."""
    has_bfloat16: bool = True


CARDS = {
    "B200": Card(memory=178, tflops=2250, bandwidth=8.0),
    "H200": Card(memory=139, tflops=989, bandwidth=4.8),
    "H100": Card(memory=79, tflops=989, bandwidth=3.35),
    "A100-80GB": Card(memory=79, tflops=312, bandwidth=2.04),
    "A100-40GB": Card(memory=39, tflops=312, bandwidth=1.56),
    "L40S": Card(memory=44, tflops=362, bandwidth=0.86),
    "A10G": Card(memory=22, tflops=70, bandwidth=0.60),
    "L4": Card(memory=22, tflops=121, bandwidth=0.30),
    "T4": Card(memory=14.5, tflops=8.1, bandwidth=0.32, has_bfloat16=False),
}


def device_of(name: str) -> Device:
    """Returns the GPU of this name. ValueError if it is not known."""
    found = {known.lower(): known for known in CARDS}.get(name.lower())
    if found is None:
        raise ValueError(f"dry_run.gpu={name} is not a GPU that is known: give one of {', '.join(CARDS)}")
    card = CARDS[found]
    return Device(name=found, memory=card.memory * GIB, is_gpu=True, has_bfloat16=card.has_bfloat16)


def estimated_speed(config: ExperimentConfig, name: str) -> float | None:
    """Returns the images per second of one GPU, estimated. None if the model or the precision is not what was measured,
    or the GPU is not known."""
    card, best = CARDS.get(name), CARDS["H200"]
    is_measured = config.model == ModelConfig() and config.training.precision in ("auto", "bfloat16")
    if card is None or not card.has_bfloat16 or not is_measured:
        return None
    share = min(card.tflops / best.tflops, card.bandwidth / best.bandwidth)
    parts = -(-config.slices_per_step // config.training.min_workers)
    repeated = (parts - 1) / parts  # towers run a second time for all micro-batches but one; forward is a third
    host_bound = _measured_speed(config.slice_size)
    return min(host_bound, _MEASURED[1024] * share) * 3 / (3 + repeated)


def _measured_speed(slice_size: int) -> float:
    """Returns the H200's images per second; between two sizes that were measured, by the time of a step."""
    sizes = sorted(_MEASURED)
    if slice_size <= sizes[0]:  # the host takes as long for a smaller slice
        return _MEASURED[sizes[0]] * slice_size / sizes[0]
    if slice_size >= sizes[-1]:
        return _MEASURED[sizes[-1]]
    low, high = max(size for size in sizes if size <= slice_size), min(size for size in sizes if size > slice_size)
    share = (slice_size - low) / (high - low)
    return slice_size / ((1 - share) * low / _MEASURED[low] + share * high / _MEASURED[high])
