"""Exports the two towers as ONNX graphs, with dynamic batch size, image size and text length.

The graphs differ from their modules in two ways, since a graph can't branch on its data. Positions are resized by
matrices of cubic weights, which fit any image size. Texts are encoded one per row, without packing, trimming and
deduplication. These are exact, so only the speed changes.

Shapes: B images of H x W pixels, N texts of T token ids, G segment tokens, h x w image tokens, C channels of a tower, D
channels of the shared space.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groupvit.image_encoder import PatchStem
from groupvit.model import GroupViT, ImageEncoding
from groupvit.windows import group_maps

IMAGE_GRAPH, TEXT_GRAPH = "image_encoder.onnx", "text_encoder.onnx"
OPSET = 20
"""The first version with exact GELU as one operator. Runtimes since 2024 support it."""

_CUBIC = -0.75
"""Coefficient of the cubic kernel, as in `torch.nn.functional.interpolate`."""


class ImageGraph(nn.Module):
    """image [B,3,H,W] -> image_embedding [B,D], segment_embeddings [B,G,D], group_map [B,G,h,w].

    H and W must be multiples of the patch size, else the graph fails. The embeddings are not L2-normalised. The group
    map is the last stage's soft map, which sums to 1 over G.
    """

    def __init__(self, model: GroupViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoder = self.model.image_encoder
        side = encoder.config.grid_size
        stem = encoder.stem
        image = _in_whole_patches(image, encoder.config.patch_size)
        # Gives the same sums as the stem's own product over patches, whose reshapes would make the size static.
        x = stem.convolution(image) if isinstance(stem, PatchStem) else stem.layers(image)
        rows, columns = x.shape[-2:]
        table = encoder.positions.reshape(side, side, -1).permute(2, 0, 1)  # [C,side,side]
        table = cubic_weights(rows, side) @ table @ cubic_weights(columns, side).T  # [C,h,w]
        tokens = encoder.stem_norm(x.flatten(2).transpose(1, 2)) + table.flatten(1).T
        features = encoder.encode_tokens(tokens, (rows, columns))
        encoding = ImageEncoding(
            embedding=self.model.image_projector(features.pooled),
            segment_embeddings=self.model.image_projector(features.segment_tokens),
            features=features,
        )
        return encoding.embedding, encoding.segment_embeddings, group_maps(features)[-1]


class TextGraph(nn.Module):
    """token_ids int64 [N,T] -> text_embedding [N,D], not L2-normalised; T is at most the context length."""

    def __init__(self, model: GroupViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor) -> Tensor:
        encoder = self.model.text_encoder
        length = token_ids.shape[1]
        x = encoder.token_embedding(token_ids) + encoder.positions[:length]
        places = torch.arange(length, device=token_ids.device)
        mask = places[:, None] >= places
        for block in encoder.blocks:
            x = block(x, mask=mask)
        ends = token_ids.argmax(dim=-1)[:, None, None].expand(-1, 1, x.shape[-1])
        return self.model.text_projector(encoder.norm(x.gather(1, ends).squeeze(1)))


def _in_whole_patches(image: Tensor, patch_size: int) -> Tensor:
    """Return the image [B,3,H,W] unchanged. In the graph, fail for sides that are not multiples of the patch size.

    A convolution would silently drop the last rows and columns, or add some. A graph cannot raise an error. So it
    reshapes the image to its sides rounded down to multiples, which fails if these are smaller. The runtime's message
    then has both shapes.
    """
    shape = torch.onnx.ops.symbolic("Shape", (image,), dtype=torch.int64, shape=(4,), version=OPSET)
    multiples = shape - shape % torch.tensor([1, 1, patch_size, patch_size])
    return torch.onnx.ops.symbolic(
        "Reshape",
        (image, multiples),
        {"allowzero": 1},  # else a side of 0 would mean "keep this side"
        dtype=image.dtype,
        shape=image.shape,
        version=OPSET,
    )


def cubic_weights(num_out: int, num_in: int) -> Tensor:
    """Matrix float32 [num_out, num_in] for bicubic resizing along one axis: pixel centres aligned, edges repeated."""
    place = (torch.arange(num_out, dtype=torch.float32) + 0.5) * num_in / num_out - 0.5
    first = place.floor()
    taps = first[:, None] + torch.arange(-1, 3)  # [num_out, 4]
    distance = (place[:, None] - taps).abs()
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    weights = torch.where(distance <= 1, near, far)
    hits = taps.clamp(0, num_in - 1)[:, :, None] == torch.arange(num_in)
    return (weights[:, :, None] * hits).sum(dim=1)


def export_onnx(model: GroupViT, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write image_encoder.onnx and text_encoder.onnx, both with `metadata`, into an existing folder.

    Raises:
        ValueError: The packages that write ONNX are not installed, or the model has no grouping.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 -- torch's exporter imports it, late and with a message of its own
    except ImportError:
        raise ValueError("writing ONNX needs more packages: pip install 'groupvit[onnx]'") from None
    image = model.config.image
    if not image.num_output_groups:
        raise ValueError(f"image.num_output_groups={image.num_output_groups}: without groups there is no map to export")
    model = model.eval()
    size, side = image.patch_size, image.image_size
    batch = torch.export.Dim("batch")
    # A side of one token would make the exporter specialise broadcasting. The graphs accept one nevertheless.
    height, width = (torch.export.Dim(name, min=2 * size) for name in ("height", "width"))
    length = torch.export.Dim("length", min=2, max=model.config.text.context_length)
    graphs: list[tuple[str, nn.Module, Tensor, list[str], dict[str, Any]]] = [
        (
            IMAGE_GRAPH,
            ImageGraph(model),
            torch.zeros(2, 3, side + size, side + 2 * size),
            ["image_embedding", "segment_embeddings", "group_map"],
            {"image": {0: batch, 2: height, 3: width}},
        ),
        (
            TEXT_GRAPH,
            TextGraph(model),
            torch.zeros(2, 5, dtype=torch.int64),
            ["text_embedding"],
            {"token_ids": {0: batch, 1: length}},
        ),
    ]
    for name, graph, example, outputs, dynamic_shapes in graphs:
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            input_names=list(dynamic_shapes),
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # remove stack traces, which contain local paths
            if node.op_type == "Reshape" and node.inputs[0] in program.model.graph.inputs:
                node.name = f"image_sides_must_be_multiples_of_{size}"  # runtimes name the operator that failed
        program.model.metadata_props.update(metadata)
        program.save(folder / name, external_data=False)
        onnx.checker.check_model(folder / name)
