"""Grouping: segments are assigned to groups, and merged (paper section 3.1, equations 2 to 5; released code where they
differ).

Shapes: B images, S segments that come in, M group tokens, G groups that go out, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupvit.precision import at_least_float32
from groupvit.transformer import CrossAttention, Mlp

EMPTY_GROUP_MASS = 1.0
"""Added to each group's total assignment before dividing by it: an empty group's update is about 0, a group of n
segments averages them with weight n / (n + 1). A full 1 in the released code, not a small epsilon."""


def sample_gumbel(shape: torch.Size, noise: torch.Generator) -> Tensor:
    """I.i.d. Gumbel(0, 1) noise, float32, on the generator's device."""
    uniform = torch.rand(shape, generator=noise, device=noise.device)
    limits = torch.finfo(torch.float32)
    return -torch.log(-torch.log(uniform.clamp(limits.tiny, 1 - limits.eps)))


def straight_through_assignment(logits: Tensor) -> Tensor:
    """One-hot of the arg max over groups whose gradient is the softmax's (equation 4): [B,G,S] -> [B,G,S]."""
    soft = logits.softmax(dim=1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return hard - soft.detach() + soft


class AssignmentAttention(nn.Module):
    """One-headed attention in which each segment distributes itself over the groups, and groups average their
    segments.
    """

    def __init__(self, width: int, *, hard: bool, tau: float = 1.0) -> None:
        super().__init__()
        self.hard, self.tau, self.scale = hard, tau, width**-0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, groups: Tensor, segments: Tensor, noise: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Groups [B,G,C] and segments [B,S,C] -> update of the groups [B,G,C], noise-free assignment logits [B,G,S]."""
        # Keys and values of all segments are never made: with S much larger than G it is cheaper to project the groups
        # back, q (K x + b) = (q K) x + q b, and to average before projecting, A (V x + b) = V (A x) + b sum(A).
        queries = self.query(groups)
        logits = (queries @ self.key.weight) @ segments.transpose(1, 2) + (queries @ self.key.bias)[..., None]
        logits = at_least_float32(logits) * self.scale
        if self.hard:
            noisy = logits if noise is None else logits + sample_gumbel(logits.shape, noise)
            assignment = straight_through_assignment(noisy / self.tau)
        else:
            logits = logits / self.tau
            assignment = logits.softmax(dim=1)
        assignment = assignment / (assignment.sum(dim=2, keepdim=True) + EMPTY_GROUP_MASS)
        averages = assignment.to(segments.dtype) @ segments
        values = F.linear(averages, self.value.weight) + assignment.sum(dim=2, keepdim=True) * self.value.bias
        return self.out(values), logits


class PreAssignment(nn.Module):
    """Cross-attention by which the groups look at the segments before assignment. Neither input is normalised first."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = CrossAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), width)
        self.out_norm = nn.LayerNorm(width)

    def forward(self, groups: Tensor, segments: Tensor) -> Tensor:
        groups = groups + self.attention(groups, segments)
        groups = groups + self.mlp(self.mlp_norm(groups))
        return self.out_norm(groups)


class TokenMixing(nn.Module):
    """An MLP over the token axis: [B,M,C] -> [B,G,C]."""

    def __init__(self, num_in: int, hidden_width: int, num_out: int) -> None:
        super().__init__()
        self.mlp = Mlp(num_in, hidden_width, num_out)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(tokens.transpose(1, 2)).transpose(1, 2)


class GroupingBlock(nn.Module):
    """Merges S segments into G, guided by M group tokens."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_group_tokens: int,
        num_output_groups: int,
        *,
        mlp_ratio: float,
        token_mixing_ratio: float,
        hard: bool,
        tau: float = 1.0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.group_norm = nn.LayerNorm(width)
        self.segment_norm = nn.LayerNorm(width)
        self.token_mixing = TokenMixing(num_group_tokens, int(width * token_mixing_ratio), num_output_groups)
        self.mixed_norm = nn.LayerNorm(width)
        self.pre_assignment = PreAssignment(width, num_heads, mlp_ratio)
        self.assignment = AssignmentAttention(width, hard=hard, tau=tau)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), width)

    def forward(self, segments: Tensor, group_tokens: Tensor, noise: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Segments [B,S,C], group tokens [B,M,C] -> new segments [B,G,C], noise-free assignment logits [B,G,S].

        `noise` draws the Gumbel noise of the hard assignment; None: no noise (evaluation).
        """
        segments = self.segment_norm(segments)
        groups = self.mixed_norm(self.token_mixing(self.group_norm(group_tokens)))
        groups = self.pre_assignment(groups, segments)
        update, logits = self.assignment(groups, segments, noise)
        groups = groups + update if self.residual else update
        return groups + self.mlp(self.mlp_norm(groups)), logits

    def ungrouped(self, segments: Tensor) -> Tensor:
        """What a group would be that gathered one segment alone, group tokens left aside: [B,S,C] -> [B,S,C]."""
        gathered = self.assignment.out(self.assignment.value(self.segment_norm(segments)))
        return gathered + self.mlp(self.mlp_norm(gathered))


def hard_assignment(soft_assignment: Tensor) -> Tensor:
    """One-hot of the arg max over groups: [B,G,S] -> [B,G,S], same dtype."""
    winners = soft_assignment.argmax(dim=1)
    return F.one_hot(winners, soft_assignment.shape[1]).transpose(1, 2).to(soft_assignment.dtype)
