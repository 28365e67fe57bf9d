"""What a run shows on the cluster's dashboard while it trains: gauges that Ray exports to Prometheus under `ray_…`.

MLflow stays the record of a run; these are for whoever watches a cluster (infra/observability). Rank 0 of the training
sets those of the steps, where it logs; the driver's evaluator sets those of the evaluations:

    shown = StepGauges(run_name)            shown.set(done, values, global_batch_size=4096)
    shown = EvaluationGauges(run_name)      shown.set(step, miou=42.0, best_miou=43.5)

Ray forgets a gauge when the process that set it ends.
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
"""By the key under which the train loop knows a value: the gauge's name, which Prometheus sees with `ray_` before it,
and its description."""

EVALUATION_GAUGES = {
    "step": ("groupvit_evaluated_step", "Step of the checkpoint last evaluated."),
    "miou": ("groupvit_miou_percent", "mIoU of the checkpoint last evaluated, mean over the parts of the benchmark."),
    "best_miou": ("groupvit_best_miou_percent", "Highest mIoU of the run so far."),
}


class StepGauges:
    """How fast a run trains, and how far it is."""

    def __init__(self, run_name: str) -> None:
        self._gauges = _make(STEP_GAUGES, run_name)

    def set(self, done: int, values: Mapping[str, float], *, global_batch_size: int) -> None:
        """Show a logged step: what train_step and Clock.metrics() gave; keys without a gauge are left to MLflow."""
        rate = values.get("images_per_second")
        shown = {**values, "step": done} | ({"step_seconds": global_batch_size / rate} if rate else {})
        for key, gauge in self._gauges.items():
            gauge.set(shown.get(key))


class EvaluationGauges:
    """How well a run's checkpoints segment."""

    def __init__(self, run_name: str) -> None:
        self._gauges = _make(EVALUATION_GAUGES, run_name)

    def set(self, step: int, *, miou: float, best_miou: float) -> None:
        """Show the scores of the checkpoint of `step`, in percent."""
        for key, value in {"step": step, "miou": miou, "best_miou": best_miou}.items():
            self._gauges[key].set(value)


def _make(gauges: Mapping[str, tuple[str, str]], run_name: str) -> dict[str, Gauge]:
    """The gauges, each told apart from other runs' by the tag `run`."""
    made = {key: Gauge(name, description=text, tag_keys=("run",)) for key, (name, text) in gauges.items()}
    for gauge in made.values():
        gauge.set_default_tags({"run": ascii_name(run_name)})
    return made


def ascii_name(name: str) -> str:
    """A run's name as Ray's metrics take it: other characters than ASCII's are quoted as in a URI."""
    return name if name.isascii() else quote(name, safe=" ")
