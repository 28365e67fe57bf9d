"""The model: parameter counts of the paper's size, and batch statistics shared across workers."""

import torch
import torch.distributed as dist
from torch import nn

from groupvit.config import ModelConfig
from groupvit.model import GroupViT, batch_norm
from tests.support.small_model import small_model
from tests.support.torch_workers import run_workers


def test_the_papers_model_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        model = GroupViT(ModelConfig())
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert counts == {
        "image_encoder": 28_837_136,
        "text_encoder": 22_145_792,
        "image_projector": 2_633_984,
        "text_projector": 2_109_696,
    }
    assert sum(p.numel() for p in model.parameters()) == 55_726_610


def normalise(group: dist.ProcessGroup | None) -> dict[str, torch.Tensor]:
    """Two inputs of other sizes; what comes of them, side by side."""
    rank, world_size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    result: dict[str, list[torch.Tensor]] = {"output": [], "grad": [], "mean": [], "variance": []}
    inputs, norms, weights = [], [nn.BatchNorm1d(5).train(), nn.BatchNorm1d(3).train()], []
    for index, norm in enumerate(norms):
        num_rows = 8 * (index + 1)
        mine = slice(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)
        generator = torch.Generator().manual_seed(index)
        rows, scales = (torch.randn(num_rows, norm.num_features, generator=generator) for _ in range(2))
        inputs.append((rows * 3 + 7 + torch.arange(num_rows)[:, None])[mine].clone().requires_grad_())
        weights.append(scales[mine])
    outputs = batch_norm(norms, inputs, group)
    sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True)).backward()  # type: ignore[union-attr]
    for norm, local, output in zip(norms, inputs, outputs, strict=True):
        assert local.grad is not None and norm.running_mean is not None and norm.running_var is not None
        for name, value in zip(result, (output.detach(), local.grad, norm.running_mean, norm.running_var), strict=True):
            result[name].append(value)
    return {f"{name}_{index}": value for name, values in result.items() for index, value in enumerate(values)}


def test_batch_statistics_run_over_all_workers() -> None:
    expected = normalise(None)  # torch's own batch norm of the whole batch
    results = run_workers(normalise, 2)
    for name, value in expected.items():
        if name.startswith(("output", "grad")):
            torch.testing.assert_close(torch.cat([r[name] for r in results]), value, rtol=1e-5, atol=1e-5)
        else:
            for result in results:
                torch.testing.assert_close(result[name], value)


def test_without_grouping_every_image_token_is_embedded() -> None:
    model = small_model().eval()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    encoding = model.encode_image(images)
    assert model.embed_image_tokens(encoding.features.image_tokens).shape == (2, 8 * 12, 16)
    for soft, hard in zip(encoding.soft_assignments, encoding.hard_assignments, strict=True):
        torch.testing.assert_close(soft.sum(dim=1), torch.ones_like(soft.sum(dim=1)))
        assert torch.equal(soft.argmax(dim=1), hard.argmax(dim=1))
