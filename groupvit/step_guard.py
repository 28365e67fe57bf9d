"""Skips training steps that would do harm, and counts them.

What is skipped follows from the run's own numbers, so every worker decides alike, and a resumed run decides as one that
never stopped. Nothing here makes the host wait for a GPU.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

WINDOW = 128
"""Number of steps whose gradients are remembered."""
FEWEST = 16
"""Number of steps after which a gradient can be called large."""


class StepGuard:
    """Remembers the norms of the last gradients that were used.

    Args:
        max_ratio: A step is skipped if its norm is larger than this times their median. None: only if it is not finite.
        device: Device of the norms.
    """

    def __init__(self, max_ratio: float | None, device: torch.device) -> None:
        self._max_ratio = max_ratio
        self._norms = torch.full((WINDOW,), torch.inf, device=device)  # the newest last; infinite: none
        self.num_skipped = torch.zeros((), dtype=torch.int64, device=device)
        """Number of skipped steps, 0-D."""
        self.num_in_a_row = torch.zeros_like(self.num_skipped)
        """How many of these are the last ones, 0-D."""

    def skips(self, norm: Tensor, *, by_order: bool = False) -> Tensor:
        """Whether to skip the step with a gradient of this norm (0-D): bool 0-D. Call it once for each step.

        `by_order`: it is skipped whatever its norm is, and neither counted nor remembered.
        """
        if by_order:
            return torch.ones_like(norm, dtype=torch.bool)
        norm = norm.detach().to(self._norms.dtype)
        skipped = ~norm.isfinite()
        if self._max_ratio is not None:
            skipped = skipped | (norm > self._max_ratio * self.median())
        self._norms = torch.where(skipped, self._norms, torch.cat([self._norms[1:], norm[None]]))
        self.num_skipped += skipped
        self.num_in_a_row = torch.where(skipped, self.num_in_a_row + 1, 0)
        return skipped

    def median(self) -> Tensor:
        """Median of the remembered norms, 0-D; infinite while there are fewer than `FEWEST`."""
        ordered = self._norms.sort().values
        number = ordered.isfinite().sum()
        median = ordered.gather(0, ((number - 1) // 2).clamp(min=0)[None])[0]
        return torch.where(number >= FEWEST, median, torch.inf)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON-safe values."""
        norms = self._norms.tolist()
        return {
            "grad_norms": [norm for norm in norms if norm != float("inf")],
            "skipped_steps": int(self.num_skipped),
            "skipped_in_a_row": int(self.num_in_a_row),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Checkpoints of earlier versions have none of it."""
        norms = [float(norm) for norm in state.get("grad_norms", [])][-WINDOW:]
        if norms:
            self._norms[-len(norms) :] = torch.tensor(norms)
        self.num_skipped.fill_(int(state.get("skipped_steps", 0)))
        self.num_in_a_row.fill_(int(state.get("skipped_in_a_row", 0)))


@contextmanager
def skipping(optimizer: torch.optim.Optimizer, skipped: Tensor) -> Iterator[None]:
    """Let a fused optimiser leave weights and state as they are if `skipped` (bool 0-D) is true."""
    # The interface through which torch.amp.GradScaler does the same.
    optimizer.found_inf = skipped.to(torch.float32)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
