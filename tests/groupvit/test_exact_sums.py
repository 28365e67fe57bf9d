"""Sums in fixed point: exact in any order, and honest about what does not fit."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groupvit.exact_sums import LARGEST_SUM, UNIT, add_terms, from_fixed, to_fixed

FLOATS = st.floats(-1, 1, width=32)


@given(st.lists(FLOATS, min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(values: list[float], shuffler) -> None:  # type: ignore[no-untyped-def]
    terms = torch.tensor(values)
    shuffled = list(values)
    shuffler.shuffle(shuffled)
    sums = [to_fixed(x, len(values))[0].sum() for x in (terms, torch.tensor(shuffled))]
    assert torch.equal(*sums)
    exact = sum(Fraction(value) for value in values)
    assert abs(Fraction(from_fixed(sums[0], torch.float64).item()) - exact) <= len(values) * Fraction(UNIT)


def test_a_gradient_keeps_all_bits_of_float32_down_to_a_millionth() -> None:
    terms = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) * 1e-2 + 1e-6
    assert torch.equal(from_fixed(to_fixed(terms, 1)[0], torch.float32), terms)
    small = terms * 1e-7
    torch.testing.assert_close(from_fixed(to_fixed(small, 1)[0], torch.float32), small, rtol=0, atol=UNIT)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2 * LARGEST_SUM])
def test_what_does_not_fit_is_reported(value: float) -> None:
    terms = torch.tensor([1.0, value, 2.0])
    assert not to_fixed(terms, 1)[1]
    assert to_fixed(torch.empty(0), 1)[1]


def test_terms_are_added_piece_by_piece_with_zeros_among_them() -> None:
    terms = torch.zeros(3, 200_000)
    for row, first in enumerate((0, 50_000, 190_000)):
        terms[row, first : first + 9_000] = torch.randn(9_000, generator=torch.Generator().manual_seed(row))
    sums = torch.full((200_000,), 77, dtype=torch.int64)  # what memory holds from before
    for row, of_slice in enumerate(terms):
        assert add_terms(sums, of_slice, 3, is_first=row == 0)
    assert torch.equal(sums, torch.stack([to_fixed(of_slice, 3)[0] for of_slice in terms]).sum(dim=0))
    torch.testing.assert_close(from_fixed(sums, torch.float64), terms.double().sum(dim=0), rtol=0, atol=3 * UNIT)


def test_the_largest_terms_fill_a_sum_without_overflow() -> None:
    for sign in (1, -1):
        terms, fit = to_fixed(torch.full((1024,), sign * LARGEST_SUM / 1024), 1024)
        assert fit and from_fixed(terms.sum(), torch.float64) == sign * LARGEST_SUM
