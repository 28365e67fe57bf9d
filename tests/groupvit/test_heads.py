"""Projectors and losses slice by slice give the gradients of the whole batch at once."""

import torch
from torch import Tensor

from groupvit.collectives import Gathered, Slices
from groupvit.gradients import GradientReducer
from groupvit.heads import TowerFeatures, head_gradients
from groupvit.losses import contrastive_losses
from groupvit.model import GroupViT
from tests.support.small_model import LOSSES, small_model

NUM_SLICES, SIZE = 4, 6


def features_and_keys(model: GroupViT, name: str) -> tuple[list[TowerFeatures], list[Tensor]]:
    loss, config = LOSSES[name], model.config
    segments = config.image.num_output_groups[-1] if loss.looks_at_segments else 0
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, keys = [], []
    for _ in range(NUM_SLICES):
        tensors = [
            random(SIZE, 1 + segments, config.image.width),
            random(SIZE, 1 + loss.num_prompts, config.text.width),
        ]
        if loss.looks_at_segments and loss.multi_label_match == "mixture":
            tensors.append(random(SIZE, segments).softmax(dim=1))
        features.append(TowerFeatures(tuple(tensors)).detached())
        keys.append(torch.randint(5, (SIZE, loss.num_prompts), generator=generator))
    return features, keys


def gradients(model: GroupViT) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_slices_give_the_losses_and_gradients_of_the_whole_batch() -> None:
    for name, loss in LOSSES.items():
        model, whole = (small_model().train().double() for _ in range(2))
        features, keys = features_and_keys(model, name)
        slices = Slices(NUM_SLICES)
        reducer = GradientReducer(model.parameters(), None, NUM_SLICES)
        given = keys if loss.shares_positives else None
        metrics, right = reducer.finish(
            head_gradients(model, features, given, loss=loss, precision="float32", slices=slices, reducer=reducer)
        )
        assert right

        joined = [
            torch.cat(list(same)).detach().requires_grad_() for same in zip(*(f.tensors for f in features), strict=True)
        ]
        images, texts = whole.image_projector(joined[0]), whole.text_projector(joined[1])  # torch's own batch norm
        rows = [Gathered(x, x, 0) for x in (images, texts, *joined[2:])]
        all_keys = torch.cat(keys)
        losses = contrastive_losses(
            rows[0],
            rows[1],
            whole.logit_scale,
            whole.multi_label_logit_scale,
            loss,
            segment_masses=rows[2] if len(rows) > 2 else None,
            prompt_keys=Gathered(all_keys, all_keys, 0) if loss.shares_positives else None,
        )
        losses["loss"].backward()
        torch.testing.assert_close(metrics, {key: value.detach() for key, value in losses.items()}, rtol=1e-9, atol=0)
        torch.testing.assert_close(gradients(model), gradients(whole), rtol=1e-9, atol=2e-11, msg=name)
        for kind, expected in enumerate(joined):
            found = torch.cat([x for f in features if (x := f.tensors[kind].grad) is not None])
            torch.testing.assert_close(found, expected.grad, rtol=1e-9, atol=2e-11, msg=name)
        torch.testing.assert_close(dict(model.named_buffers()), dict(whole.named_buffers()), rtol=1e-12, atol=0)
