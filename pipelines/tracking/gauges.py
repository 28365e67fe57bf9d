"""Gauges of a run for the cluster's dashboard. Ray exports them to Prometheus with the prefix `ray_`.

MLflow stays the record of a run. The gauges are for monitoring a cluster (infra/observability). Rank 0 of the training
sets the gauges of the steps that it logs. The driver's evaluator sets the gauges of the evaluations:

    shown = StepGauges(run_name)            shown.set(done, values, global_batch_size=4096)
    shown = EvaluationGauges(run_name)      shown.set(step, miou=42.0, best_miou=43.5)

Ray removes a gauge when the process that set it ends.
"""

from collections.abc import Mapping
from urllib.parse import quote

from ray.util.metrics import Gauge

STEP_GAUGES = {
    "step": ("groupvit_step", "Optimiser steps done."),
    "loss": ("groupvit_loss", "Training loss of the step last logged."),
    "step_seconds": ("groupvit_step_seconds", "Wall time of an optimiser step, mean since the step logged before."),
    "images_per_second": ("groupvit_images_per_second", "Images per second over all workers."),
    "data_wait_fraction": ("groupvit_data_wait_fraction", "Share of the time rank 0 waits for data."),
    "eta_seconds": ("groupvit_eta_seconds", "Seconds to the end of the run at this speed."),
    "substituted_images": ("groupvit_substituted_images", "Corrupt images replaced since step 0, over all workers."),
}
"""Name and description of each gauge, by the key of its value in the training loop. In Prometheus the name starts with
`ray_`."""

EVALUATION_GAUGES = {
    "step": ("groupvit_evaluated_step", "Step of the checkpoint last evaluated."),
    "miou": ("groupvit_miou_percent", "mIoU of the checkpoint last evaluated, mean over the parts of the benchmark."),
    "best_miou": ("groupvit_best_miou_percent", "Highest mIoU of the run so far."),
}


class StepGauges:
    """Gauges of a run's speed and progress."""

    def __init__(self, run_name: str) -> None:
        self._gauges = _make(STEP_GAUGES, run_name)

    def set(self, done: int, values: Mapping[str, float], *, global_batch_size: int) -> None:
        """Shows the values of a logged step, from train_step and Clock.metrics(). Keys without a gauge are ignored."""
        rate = values.get("images_per_second")
        shown = {**values, "step": done} | ({"step_seconds": global_batch_size / rate} if rate else {})
        for key, gauge in self._gauges.items():
            gauge.set(shown.get(key))


class EvaluationGauges:
    """Gauges of the scores of a run's checkpoints."""

    def __init__(self, run_name: str) -> None:
        self._gauges = _make(EVALUATION_GAUGES, run_name)

    def set(self, step: int, *, miou: float, best_miou: float) -> None:
        """Shows the scores of the checkpoint of `step`, in percent."""
        for key, value in {"step": step, "miou": miou, "best_miou": best_miou}.items():
            self._gauges[key].set(value)


def _make(gauges: Mapping[str, tuple[str, str]], run_name: str) -> dict[str, Gauge]:
    """Creates the gauges. The tag `run` distinguishes them from those of other runs."""
    made = {key: Gauge(name, description=text, tag_keys=("run",)) for key, (name, text) in gauges.items()}
    for gauge in made.values():
        gauge.set_default_tags({"run": ascii_name(run_name)})
    return made


def ascii_name(name: str) -> str:
    """Returns a run's name as Ray's metrics accept it. Characters outside ASCII are quoted as in a URI."""
    return name if name.isascii() else quote(name, safe=" ")
