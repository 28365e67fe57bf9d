"""The steps of a run that are skipped: what is recorded of them, and when they are too many."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from groupvit.step_guard import StepGuard
from pipelines.experiments.config import TrainingConfig
from pipelines.runs.folder import RunFolder
from pipelines.runs.skipped import write_skipped
from pipelines.training.progress import RunStoppedError


class SkippedSteps:
    """Counts and records skipped steps. The values stay on the device from one look to the next.

    Args:
        run: The run, to whose folder they are written.
        config: Which steps are skipped, and how many may be.
        device: Device of the training.
        say: Shows a line to the user. None: this worker neither shows nor records anything.
    """

    def __init__(
        self, run: RunFolder, config: TrainingConfig, device: torch.device, say: Callable[[str], None] | None
    ) -> None:
        self._run, self._config, self._say = run, config, say
        self.guard = StepGuard(config.max_grad_norm_ratio, device)
        self._unread: list[tuple[int, list[Tensor]]] = []
        self._last_loss = math.nan
        self._why = ""

    def add(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Takes notice of step `step` (from 0). On a GPU the host does not wait."""
        self._unread.append((step, [metrics["skipped"], metrics["loss"], metrics["grad_norm"]]))

    def look(self, done: int) -> dict[str, float]:
        """Records the skipped ones of the last steps. On a GPU the host waits.

        Returns the values of the last step that are always finite: `loss`, of the last step that has one, and
        `skipped_steps`, the number of all.
        Raises RunStoppedError if too many in a row were skipped.
        """
        for step, tensors in self._unread:
            skipped, loss, norm = torch.stack([x.to(torch.float64) for x in tensors]).tolist()
            if math.isfinite(loss):
                self._last_loss = loss
            if skipped and self._say is not None:
                write_skipped(self._run, step, {"loss": loss, "grad_norm": norm, "median": float(self.guard.median())})
                self._say(
                    f"warning: step {step + 1} was skipped: loss {loss:g}, norm of the gradient {norm:g}; see "
                    f"`groupvit inspect-step {self._run.uri} {step + 1}`"
                )
            if skipped:
                self._why = f"the loss was {loss:g} and the norm of the gradient {norm:g}"
        self._unread.clear()
        number, limit = int(self.guard.num_in_a_row), self._config.max_skipped_steps
        if number > limit or (done == self._config.num_steps == number):
            raise RunStoppedError(
                f"{number} steps in a row were skipped, up to step {done}, where {self._why}: start under another "
                "--training.run-name with a lower optimizer.learning_rate or a longer optimizer.warmup_steps, or allow "
                f"more than training.max_skipped_steps={limit}"
            )
        return {"loss": self._last_loss, "skipped_steps": int(self.guard.num_skipped)}

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return {"loss": self._last_loss if math.isfinite(self._last_loss) else None, "guard": self.guard.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's state."""
        self.guard.load(state.get("guard", {}))
        self._last_loss = math.nan if state["loss"] is None else state["loss"]
