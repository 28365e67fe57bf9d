"""The contrastive losses against a written-out form, and across workers."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from groupvit.losses import image_text_contrastive_loss, multi_label_contrastive_loss, segment_mixture_loss
from tests.support.torch_workers import run_workers

SCALE = torch.tensor(math.log(1 / 0.07))


def embeddings(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shared_targets(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Dense targets of shared positives, written with loops: image -> prompt [B,BK], prompt -> image [BK,B]."""
    batch, num_prompts = keys.shape
    flat = keys.flatten().tolist()
    to_prompts, to_images = torch.zeros(batch, len(flat)), torch.zeros(len(flat), batch)
    for image in range(batch):
        for key in keys[image].tolist():
            same = [column for column, other in enumerate(flat) if other == key]
            for column in same:
                to_prompts[image, column] += 1 / num_prompts / len(same)
    for row, key in enumerate(flat):
        having = [image for image in range(batch) if key in keys[image].tolist()]
        to_images[row, having] = 1 / len(having)
    return to_prompts, to_images


@pytest.mark.parametrize("segments", [False, True])
def test_shared_positives_equal_dense_soft_targets(segments: bool) -> None:
    keys = torch.tensor([[1, 2, 2], [2, 3, 4], [5, 1, 6], [7, 8, 9]])
    images = embeddings(4, 5, 16, seed=0) if segments else embeddings(4, 16, seed=0)
    prompts = embeddings(4, 3, 16, seed=1)
    to_prompts, to_images = shared_targets(keys)
    cosines = torch.einsum("b...d,pd->b...p", F.normalize(images, dim=-1), F.normalize(prompts, dim=-1).flatten(0, 1))
    logits = cosines / 0.07
    if segments:
        logits = logits.logsumexp(dim=1)
    expected = 0.5 * (F.cross_entropy(logits, to_prompts) + F.cross_entropy(logits.T, to_images))
    torch.testing.assert_close(multi_label_contrastive_loss(images, prompts, SCALE, prompt_keys=keys), expected)


def test_distinct_keys_are_the_plain_losses() -> None:
    images, texts, prompts = (embeddings(*shape, seed=i) for i, shape in enumerate([(6, 16), (6, 16), (6, 3, 16)]))
    plain = multi_label_contrastive_loss(images, prompts, SCALE)
    torch.testing.assert_close(
        multi_label_contrastive_loss(images, prompts, SCALE, prompt_keys=torch.arange(18).view(6, 3)), plain
    )
    plain = image_text_contrastive_loss(images, texts, SCALE)
    torch.testing.assert_close(image_text_contrastive_loss(images, texts, SCALE, text_keys=torch.arange(6)), plain)
    assert image_text_contrastive_loss(images, texts, SCALE, text_keys=torch.tensor([0, 0, 1, 2, 3, 4])) != plain


def test_the_logit_scale_is_clamped() -> None:
    images, texts = embeddings(4, 8, seed=0), embeddings(4, 8, seed=1)
    at_bound = image_text_contrastive_loss(images, texts, torch.tensor(math.log(100.0)))
    torch.testing.assert_close(image_text_contrastive_loss(images, texts, torch.tensor(50.0)), at_bound)


def test_segment_mixture_equals_its_formula() -> None:
    keys = torch.tensor([[1, 2, 2], [2, 3, 4], [5, 1, 6], [7, 8, 9]])
    segments, nouns = F.normalize(embeddings(4, 5, 16, seed=0), dim=-1), F.normalize(embeddings(10, 16, seed=1), dim=-1)
    masses = embeddings(4, 5, seed=2).softmax(dim=1)
    loss = segment_mixture_loss(segments, masses, nouns[keys], SCALE, keys)
    distinct = sorted(set(keys.flatten().tolist()))
    weights = (masses / 0.05).clamp(max=1)
    weights = weights / weights.sum(dim=1, keepdim=True) + 1e-6
    image_terms, noun_terms = [], []
    for image in range(4):
        logits = segments[image] @ nouns[distinct].T / 0.07  # [G,U]
        probability = (weights[image][:, None] * logits.softmax(dim=1)).sum(dim=0)
        own = {distinct.index(key) for key in keys[image].tolist()}
        image_terms.append(-sum(probability[column].log() for column in own) / len(own))
        for column in own:
            heard = [(weights[i] * (segments[i] @ nouns[distinct[column]] / 0.07).exp()).sum().log() for i in range(4)]
            having = [i for i in range(4) if distinct[column] in keys[i].tolist()]
            log_shares = torch.stack(heard).log_softmax(dim=0)
            noun_terms.append(-sum(log_shares[i] for i in having) / len(having))
    expected = 0.5 * (sum(image_terms) / 4 + sum(noun_terms) / len(noun_terms))
    torch.testing.assert_close(loss, expected)


def worker_losses(group: dist.ProcessGroup | None, shared: bool, segments: bool) -> dict[str, Tensor]:
    rank, world_size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    images = embeddings(8, 5, 16, seed=0) if segments else embeddings(8, 16, seed=0)
    rows = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    inputs = {"images": images, "texts": embeddings(8, 16, seed=1), "prompts": embeddings(8, 3, 16, seed=2)}
    local = {name: value[rows].clone().requires_grad_() for name, value in inputs.items()}
    scale = SCALE.clone().requires_grad_()
    prompt_keys = (torch.arange(24) * 7 % 5).view(8, 3)[rows] if shared else None
    text_keys = (torch.arange(8) % 6)[rows] if shared else None
    pooled = local["images"].mean(dim=1) if segments else local["images"]
    loss = image_text_contrastive_loss(pooled, local["texts"], scale, group, text_keys)
    loss = loss + multi_label_contrastive_loss(local["images"], local["prompts"], scale, group, prompt_keys)
    loss.backward()
    inputs = {"scale": scale, **local}
    return {"loss": loss.detach(), **{name: value.grad for name, value in inputs.items() if value.grad is not None}}


CASES = [(False, False), (True, False), (True, True)]


def losses_of_cases(group: dist.ProcessGroup | None) -> list[dict[str, Tensor]]:
    return [worker_losses(group, shared, segments) for shared, segments in CASES]


def test_workers_together_make_the_loss_and_gradient_of_the_global_batch() -> None:
    results = run_workers(losses_of_cases, 2)
    for case, expected in enumerate(losses_of_cases(None)):
        of_workers = [worker[case] for worker in results]
        for name in ("loss", "scale"):
            torch.testing.assert_close(sum(r[name] for r in of_workers) / 2, expected[name])
        for name in ("images", "texts", "prompts"):
            torch.testing.assert_close(torch.cat([r[name] for r in of_workers]) / 2, expected[name])
