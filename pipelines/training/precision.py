"""The precision of a training run: chosen once, by the hardware it starts on, and kept from then on."""

import torch
import torch.distributed as dist

from groupvit.config import Precision, PrecisionChoice
from groupvit.precision import has_native_bfloat16
from pipelines.runs.folder import RunFolder, recorded_precision

PRECISION_TAG = "groupvit.precision"
"""MLflow tag of the precision that was chosen."""


def settle_precision(
    run: RunFolder, choice: PrecisionChoice, device: torch.device, group: dist.ProcessGroup | None = None
) -> tuple[Precision, str]:
    """The run's precision, and why in some words. A collective: every worker gets the same.

    The first start chooses, and rank 0 records it in run.json; every later one goes on with what is recorded.
    """
    description = run.read_description()
    recorded = recorded_precision(description)
    native = _all_native(device, group)  # always, so that all have read run.json before rank 0 writes it
    if choice != "auto":
        chosen, why = choice, "as asked"  # which is what the run began with, or the driver had refused it
    elif recorded is not None:
        chosen, why = recorded, "as the run began"
    elif native:
        chosen, why = "bfloat16", "native here"
    else:
        chosen, why = "float32", "bfloat16 would be emulated here"
    if recorded != chosen and (group is None or dist.get_rank(group) == 0):
        run.write_description((description or {}) | {"precision": chosen})
    return chosen, why


def _all_native(device: torch.device, group: dist.ProcessGroup | None) -> bool:
    native = torch.tensor(int(has_native_bfloat16(device)), device=device)
    if group is not None:
        dist.all_reduce(native, op=dist.ReduceOp.MIN, group=group)
    return bool(native.item())
