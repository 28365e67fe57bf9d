"""Compiles a run's towers at its start, if its config asks for it, and keeps what was compiled for the next start."""

import os
import time
from collections.abc import Callable

from groupvit.compilation import CompilationError, compile_towers
from groupvit.config import Precision
from groupvit.model import GroupViT
from groupvit.noise import NoiseSource
from groupvit.training import Batch, Towers
from pipelines.console.progress import duration
from pipelines.experiments.config import ExperimentConfig
from pipelines.local.home import cache_folder
from pipelines.runs.folder import RunFolder

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def prepare_towers(
    config: ExperimentConfig,
    run: RunFolder,
    model: GroupViT,
    batch: Batch,
    noise: NoiseSource,
    precision: Precision,
    say: Callable[[str], None],
) -> Towers:
    """Returns the towers of a training worker: compiled with micro-batches like `batch`, or as they are.

    If they cannot be compiled, it says so, and the run goes on without. The cache is in the run's folder, or in this
    machine's cache if that folder is in object storage. A cache that the user has chosen is kept.
    """
    choice = config.training.compile
    if choice == "off" or (choice == "auto" and model.logit_scale.device.type == "cpu"):
        return Towers.of(model)
    folder = f"{run.uri}/compiled" if run.is_local else str(cache_folder() / "compiled")
    folder = os.environ.setdefault(CACHE_VARIABLE, folder)
    start = time.perf_counter()
    accumulates = config.micro_batches_per_step > 1
    try:
        towers = compile_towers(
            model, batch, loss=config.loss, precision=precision, accumulates=accumulates, noise=noise
        )
    except CompilationError as error:
        say(f"warning: training goes on without torch.compile, slower, because it failed: {error}")
        return Towers.of(model)
    say(f"compiled the towers in {duration(time.perf_counter() - start)}; the next start finds them in {folder}")
    return towers
