"""Sums that do not depend on the order of their terms, nor on which worker adds which.

Floating-point addition rounds, so (a + b) + c and a + (b + c) differ. Integers do not have this problem. Each term is
cut once to a multiple of 2**-44 and added as a 64-bit integer, which is exact in any order as long as the sum fits: the
terms of a sum of n are at most 2**18 / n in absolute value. A term beyond this, or one that is not finite, is reported,
and the sum is then worth nothing.

For gradients, the multiple is fine enough: those of at least 1e-6 keep all bits of float32. AdamW adds 1e-8 to the size
of a gradient before it divides by it, and 2**-44 is 6e-14.
"""

import torch
from torch import Tensor

UNIT = 2.0**-44
"""Distance of the numbers to which terms are cut."""
LARGEST_SUM = 2.0**18
"""Largest absolute value of a sum. So integers stay below 2**62."""
_PIECE = 1 << 16
"""Number of values that a CPU handles at a time: what they need stays in its cache."""


def to_fixed(terms: Tensor, num_terms: int) -> tuple[Tensor, Tensor]:
    """Cut terms of sums to fixed point.

    Args:
        terms: Floating-point, any shape: one term of each of many sums.
        num_terms: Number of terms of a sum.

    Returns:
        int64 of the same shape, to be added; and bool 0-D, whether all terms are finite and small enough.
    """
    sums = torch.empty(terms.shape, dtype=torch.int64, device=terms.device)
    fit = add_terms(sums.view(-1), terms.reshape(-1), num_terms, is_first=True)
    return sums, fit


def add_terms(sums: Tensor, terms: Tensor, num_terms: int, *, is_first: bool) -> Tensor:
    """Add terms to sums, in place.

    Args:
        sums: int64 [N], in fixed point.
        terms: Floating-point [N].
        num_terms: Number of terms of a sum.
        is_first: Whether these are the first terms: what `sums` holds before does not count.

    Returns bool 0-D: whether all terms are finite and small enough.
    """
    largest = LARGEST_SUM / num_terms
    if not len(terms):
        return torch.ones((), dtype=torch.bool, device=terms.device)
    if terms.device.type != "cpu":
        low, high = torch.aminmax(terms)
        fixed = (terms / UNIT).to(torch.int64)
        if is_first:
            sums.copy_(fixed)
        else:
            sums += fixed
        return (low >= -largest) & (high <= largest)  # False for NaN
    fits = True
    scaled, fixed = terms.new_empty(_PIECE), sums.new_empty(_PIECE)
    for total, some in zip(sums.split(_PIECE), terms.split(_PIECE), strict=True):
        low, high = (bound.item() for bound in torch.aminmax(some))
        fits &= low >= -largest and high <= largest
        if low == high == 0:  # as in the rows of words that no text has
            if is_first:
                total.zero_()
            continue
        # Multiplying by a power of two is exact. The integers of a term that is too large are arbitrary.
        torch.div(some, UNIT, out=scaled[: len(some)])
        if is_first:
            total.copy_(scaled[: len(some)])
        else:
            total += fixed[: len(some)].copy_(scaled[: len(some)])
    return torch.tensor(fits)


def from_fixed(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert sums in fixed point, int64 of any shape, to floating point: rounded once."""
    if sums.device.type != "cpu":
        return (sums.to(torch.float64) * UNIT).to(dtype)
    floats = torch.empty(sums.shape, dtype=dtype)
    exact = torch.empty(_PIECE, dtype=torch.float64)
    for some, total in zip(floats.view(-1).split(_PIECE), sums.reshape(-1).split(_PIECE), strict=True):
        some.copy_(exact[: len(total)].copy_(total).mul_(UNIT))
    return floats
