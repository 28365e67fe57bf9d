"""The reference's outputs, segmentation under every option, and classification."""

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from groupvit import interop
from groupvit.config import Precision, SegmentationConfig
from groupvit.group_quality import oracle, usage
from groupvit.model import GroupViT
from groupvit.protocols import unified_protocol
from groupvit.segmentation import Words, label, predict_groups, segment_logits
from groupvit.segmenter import Segmenter
from groupvit.tokenizer import Tokenizer
from groupvit.windows import encode_views
from groupvit.zero_shot import class_embeddings
from pipelines.benchmarks.scenes import open_scenes
from pipelines.evaluation.classification import Classifier
from pipelines.evaluation.scoring import Method, Scorer, Task
from tests.support.golden import assert_near, golden_encoder, golden_tensors, golden_weights, outputs
from tests.support.pretend_cuda import Log, values
from tests.support.scenes_folder import write_scenes
from tests.support.small_checkpoint import contrasting_model

IMAGE = np.random.default_rng(5).integers(0, 256, (70, 93, 3), dtype=np.uint8)
WORDS = ("dog", ("cat", "kitten"), "grass", "sky", "tree", "road")
PAPER = SegmentationConfig(short_side=64, max_long_side=256, window=64, stride=32)
UNIFIED = dataclasses.replace(unified_protocol(with_pamr=True), short_side=64, window=64, stride=32)
PROTOCOLS = {
    "paper": PAPER,
    "unified with PAMR": UNIFIED,
    "soft masks": dataclasses.replace(PAPER, masks="soft"),
    "two scales and mirrored": dataclasses.replace(PAPER, scales=(1.0, 1.5), flip=True),
    "whole image": dataclasses.replace(PAPER, window=None, antialias=True),
    "no grouping": dataclasses.replace(PAPER, grouping=False),
    "no background": dataclasses.replace(PAPER, background_threshold=None),
    "background prompts": dataclasses.replace(PAPER, background_prompts=("wall",), background_threshold=0.1),
    "multi-label scale": dataclasses.replace(PAPER, logit_scale="multi_label", top_classes=None),
}


def golden(log: Log, *, name: str) -> None:
    tensors, encoder = golden_tensors(name), golden_encoder(name)
    heads = tuple(encoder["num_heads"])
    model = interop.from_official(golden_weights(name), num_heads=heads, image_size=encoder["img_size"])
    on_gpu = {key: x.to("cuda") for key, x in tensors.items() if key.startswith(("input/", "seg/"))}
    for key, found in outputs(model.to("cuda").eval(), on_gpu).items():
        assert_near(values(found), tensors[key], key)


def _label_map(device: str, protocol: SegmentationConfig, precision: Precision) -> NDArray[np.uint8]:
    model, tokenizer = contrasting_model().to(device), Tokenizer()
    classes = class_embeddings(model, tokenizer, WORDS, protocol.templates)
    prompts = protocol.background_prompts
    background = class_embeddings(model, tokenizer, prompts, protocol.templates) if prompts else None
    [views] = encode_views(model, [IMAGE], protocol, precision=precision)
    words = Words.of(model, classes, background, protocol)
    [labels] = label(views, words, (70, 93), protocol, (protocol.background_threshold,))
    if protocol.grouping:
        oracle(views[0], np.ones((70, 93), np.uint8), 7)
        usage(views[0])
    return labels


def labels_as_the_cpu(log: Log, *, protocol: str, precision: Precision, least: float) -> None:
    """`least`: smallest share of pixels with the CPU's label."""
    found, expected = (_label_map(device, PROTOCOLS[protocol], precision) for device in ("cuda", "cpu"))
    assert (found == expected).mean() >= least


def scores(log: Log) -> None:
    methods = (
        Method(name="groups", segmentation=PAPER, thresholds=(0.5, 0.9)),
        Method(name="no_grouping", segmentation=PROTOCOLS["no grouping"], thresholds=(0.5,)),
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_scenes(str(write_scenes(Path(folder) / "scenes", 2)))
        task = Task(dataset=dataset, methods=methods, details=True, drawn=frozenset([0]))
        block = next(iter(dataset.blocks(range(2), 2)))
        found, expected = (
            Scorer(contrasting_model(), num_threads=1, device=device).score(task, block) for device in ("cuda", "cpu")
        )
    assert found.confusion.keys() == expected.confusion.keys()
    assert all(np.array_equal(found.confusion[key], expected.confusion[key]) for key in expected.confusion)


def classifies(log: Log) -> None:
    images = [SimpleNamespace(image=IMAGE, label=index) for index in range(3)]
    dataset: Any = SimpleNamespace(read=lambda block: iter(images))

    def hits(device: str) -> Any:
        worker = Classifier(contrasting_model(), num_threads=1, device=device)
        embeddings = worker.embed(("a photo of a {}.",), ("dog", "cat", "tree", "car", "bird", "cow"))
        task: Any = SimpleNamespace(embeddings=embeddings, batch_size=2, dataset=dataset, precision="float32")
        return worker.count_hits(task, None)

    found, expected = hits("cuda"), hits("cpu")
    assert np.array_equal(found.top1, expected.top1) and np.array_equal(found.top5, expected.top5)


def on_both() -> list[GroupViT]:
    """The same model on the GPU and on the CPU."""
    return [contrasting_model().to(device) for device in ("cuda", "cpu")]


def segments(log: Log) -> None:
    found, expected = (
        Segmenter(contrasting_model().to(device), PAPER, Tokenizer(), precision="float32").segment(
            IMAGE, ["dog", "cat"]
        )
        for device in ("cuda", "cpu")
    )
    assert np.array_equal(found.labels, expected.labels)


def computes_logits(log: Log) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 64, 96, generator=generator)
    classes = torch.nn.functional.normalize(torch.randn(5, 64, generator=generator), dim=-1)
    found, expected = (
        segment_logits(contrasting_model().to(device), image.to(device), classes.to(device))
        for device in ("cuda", "cpu")
    )
    assert_near(values(found), expected)


def maps_groups(log: Log) -> None:
    found, expected = (predict_groups(model, IMAGE, PAPER) for model in on_both())
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


CHECKS: dict[str, Callable[[Log], None]] = {
    "golden: one stage": partial(golden, name="one_stage"),
    "golden: two stages": partial(golden, name="two_stage"),
    **{
        f"evaluation: {name}": partial(labels_as_the_cpu, protocol=name, precision="float32", least=0.99)
        for name in PROTOCOLS
    },
    **{
        f"evaluation: {name}, bfloat16": partial(labels_as_the_cpu, protocol=name, precision="bfloat16", least=0.5)
        for name in ("paper", "unified with PAMR", "whole image", "no grouping")
    },
    "evaluation: Scorer": scores,
    "evaluation: Classifier": classifies,
    "evaluation: Segmenter": segments,
    "evaluation: segment_logits": computes_logits,
    "evaluation: predict_groups": maps_groups,
}
