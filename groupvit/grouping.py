"""Grouping blocks: they assign segments to groups and merge them (paper section 3.1, equations 2 to 5). Where the
released code differs from the paper, we follow the code.

Shapes: B images, S input segments, M group tokens, G output groups, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupvit.precision import at_least_float32
from groupvit.transformer import CrossAttention, Mlp

EMPTY_GROUP_MASS = 1.0
"""Added to each group's total assignment before dividing by it. So the update of an empty group is about 0, and that of
n segments is their mean times n / (n + 1). The released code uses 1, not a small epsilon."""


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Turn float32 draws from [0, 1) into Gumbel(0, 1) noise of the same shape."""
    limits = torch.finfo(torch.float32)
    return -torch.log(-torch.log(uniform.clamp(limits.tiny, 1 - limits.eps)))


def straight_through_assignment(logits: Tensor) -> Tensor:
    """One-hot arg max over groups with the gradient of the softmax (equation 4): [B,G,S] -> [B,G,S]."""
    soft = logits.softmax(dim=1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return hard - soft.detach() + soft


class AssignmentAttention(nn.Module):
    """Single-head attention: each segment is distributed over the groups, each group is the mean of its segments."""

    def __init__(self, width: int, *, hard: bool, tau: float = 1.0) -> None:
        super().__init__()
        self.hard, self.tau, self.scale = hard, tau, width**-0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, groups: Tensor, segments: Tensor, gumbel: Tensor | None) -> tuple[Tensor, Tensor]:
        """Groups [B,G,C], segments [B,S,C] -> update of the groups [B,G,C], noise-free assignment logits [B,G,S].

        `gumbel` [B,G,S] is added to the logits of the hard assignment. None: no noise.
        """
        # Keys and values of the segments are not computed. Since S is much larger than G, it is cheaper to project the
        # queries, q (K x + b) = (q K) x + q b, and to average before projecting, A (V x + b) = V (A x) + b sum(A).
        queries = self.query(groups)
        logits = (queries @ self.key.weight) @ segments.transpose(1, 2) + (queries @ self.key.bias)[..., None]
        logits = at_least_float32(logits) * self.scale
        if self.hard:
            noisy = logits if gumbel is None else logits + gumbel
            assignment = straight_through_assignment(noisy / self.tau)
        else:
            logits = logits / self.tau
            assignment = logits.softmax(dim=1)
        assignment = assignment / (assignment.sum(dim=2, keepdim=True) + EMPTY_GROUP_MASS)
        averages = assignment.to(segments.dtype) @ segments
        values = F.linear(averages, self.value.weight) + assignment.sum(dim=2, keepdim=True) * self.value.bias
        return self.out(values), logits


class PreAssignment(nn.Module):
    """Cross-attention from groups to segments before the assignment. Its inputs are not normalised."""

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
    """Merges S segments into G, using M group tokens."""

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

    def forward(self, segments: Tensor, group_tokens: Tensor, gumbel: Tensor | None) -> tuple[Tensor, Tensor]:
        """Segments [B,S,C], group tokens [B,M,C] -> new segments [B,G,C], noise-free assignment logits [B,G,S].

        `gumbel` [B,G,S] is the noise of the hard assignment. None: no noise (evaluation).
        """
        segments = self.segment_norm(segments)
        groups = self.mixed_norm(self.token_mixing(self.group_norm(group_tokens)))
        groups = self.pre_assignment(groups, segments)
        update, logits = self.assignment(groups, segments, gumbel)
        groups = groups + update if self.residual else update
        return groups + self.mlp(self.mlp_norm(groups)), logits

    def ungrouped(self, segments: Tensor) -> Tensor:
        """The output for a group of one segment, without group tokens, for each segment: [B,S,C] -> [B,S,C]."""
        gathered = self.assignment.out(self.assignment.value(self.segment_norm(segments)))
        return gathered + self.mlp(self.mlp_norm(gathered))


def hard_assignment(soft_assignment: Tensor) -> Tensor:
    """One-hot arg max over groups: [B,G,S] -> [B,G,S], same dtype."""
    winners = soft_assignment.argmax(dim=1)
    return F.one_hot(winners, soft_assignment.shape[1]).transpose(1, 2).to(soft_assignment.dtype)
