"""The precision of a training run. The hardware of the first start decides it once; later starts keep it."""

import torch
import torch.distributed as dist

from groupvit.config import Precision, PrecisionChoice
from groupvit.precision import has_native_bfloat16, has_tf32
from pipelines.runs.folder import RunFolder, recorded_precision

PRECISION_TAG = "groupvit.precision"
"""MLflow tag with the chosen precision."""


def settle_precision(
    run: RunFolder, choice: PrecisionChoice, device: torch.device, group: dist.ProcessGroup | None = None
) -> tuple[Precision, str]:
    """Returns the run's precision, and the reason as text. A collective: every worker gets the same.

    The first start chooses the precision, and rank 0 records it in run.json. Later starts use the recorded one.
    """
    description = run.read_description()
    recorded = recorded_precision(description)
    native = _all_native(device, group)  # always: all have then read run.json before rank 0 writes it
    if choice == "tf32" and not has_tf32(device):
        raise ValueError("training.precision=tf32 needs NVIDIA GPUs since Ampere: give float32, bfloat16 or auto")
    if choice != "auto":
        chosen, why = choice, "as asked"  # the run started with it: the driver refuses any other
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
