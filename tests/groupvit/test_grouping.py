"""Grouping: straight-through assignment, and the empty group's weight."""

import torch

from groupvit.grouping import AssignmentAttention, gumbel_noise, hard_assignment, straight_through_assignment


def test_straight_through_is_one_hot_forward_and_softmax_backward() -> None:
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(1))
    assignment = straight_through_assignment(logits)
    torch.testing.assert_close(assignment.detach(), hard_assignment(logits.detach().softmax(dim=1)))
    (assignment * weights).sum().backward()
    reference = logits.detach().clone().requires_grad_()
    (reference.softmax(dim=1) * weights).sum().backward()
    torch.testing.assert_close(logits.grad, reference.grad)


def test_an_empty_group_is_not_updated_and_a_full_one_averages_by_n_over_n_plus_1() -> None:
    attention = AssignmentAttention(8, hard=True)
    groups = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
    segments = groups[:, :1].expand(1, 3, 8)  # three equal segments: all go to the same group
    update, logits = attention(groups, segments, None)
    winner = int(logits[0, :, 0].argmax())
    torch.testing.assert_close(update[0, 1 - winner], attention.out.bias)
    expected = attention.out(attention.value(segments[0, :1]) * 3 / 4)[0]
    torch.testing.assert_close(update[0, winner], expected)


def test_gumbel_noise_has_its_moments_and_is_finite() -> None:
    noise = gumbel_noise(torch.rand(200_000, generator=torch.Generator().manual_seed(0)))
    assert abs(float(noise.mean()) - 0.5772) < 0.01  # Euler's constant
    assert abs(float(noise.var()) - 1.6449) < 0.03  # pi^2 / 6
    assert gumbel_noise(torch.tensor([0.0, 1 - 2**-24])).isfinite().all()


def test_tau_sharpens_the_soft_assignment_and_leaves_the_hard_one() -> None:
    groups = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    segments = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(1))
    found = {}
    for hard in (False, True):
        plain = AssignmentAttention(8, hard=hard)
        sharp = AssignmentAttention(8, hard=hard, tau=0.25)
        sharp.load_state_dict(plain.state_dict())
        found[hard] = plain(groups, segments, None), sharp(groups, segments, None)
    (_, logits), (_, sharp_logits) = found[False]
    torch.testing.assert_close(sharp_logits, 4 * logits)
    (update, _), (sharp_update, _) = found[True]
    torch.testing.assert_close(sharp_update, update)
