"""Retrieval by real Ray workers, against the model applied to one image and one caption at a time."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from groupvit.checkpoint import save
from groupvit.decode import decode_image
from groupvit.finishing import to_tensor
from groupvit.model import GroupViT
from groupvit.retrieval import caption_ranks
from groupvit.tokenizer import Tokenizer
from groupvit.transforms import center_crop
from pipelines.cli.main import main
from pipelines.dataset.format import sample_id, write_dataset
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from tests.support.small_model import enlarge, one_stage_model

pytestmark = pytest.mark.usefixtures("cluster")

NUM_CPUS = 3
NUM_IMAGES = 12
COLORS = ("red", "green", "blue", "black", "white")


@pytest.fixture(scope="module")
def model() -> GroupViT:
    model = one_stage_model()
    enlarge(model.parameters())
    return model


@pytest.fixture(scope="module")
def checkpoint(model: GroupViT, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    save(folder, model)
    return str(folder)


@pytest.fixture(scope="module")
def samples() -> list[tuple[bytes, list[str]]]:
    """Images with one to three captions."""
    rng = np.random.default_rng(0)
    samples = []
    for index in range(NUM_IMAGES):
        file = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        coarse.resize((60, 40), Image.Resampling.BILINEAR).save(file, "PNG")
        numbers = range(index * 3, index * 3 + 1 + index % 3)
        samples.append((file.getvalue(), [f"{number} {COLORS[number % 5]} things" for number in numbers]))
    return samples


@pytest.fixture(scope="module")
def dataset(samples: list[tuple[bytes, list[str]]], tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [
        {
            "sample_id": sample_id(image, *captions),
            "image": image,
            "captions": captions,
            "nouns": [[] for _ in captions],
            "width": 1,
            "height": 1,
        }
        for image, captions in samples
    ]
    folder = tmp_path_factory.mktemp("data") / "held-out"
    write_dataset(str(folder), rows, rows_per_group=3, groups_per_file=2)
    return str(folder)


def test_the_recalls_are_those_of_single_pairs(
    model: GroupViT, checkpoint: str, dataset: str, samples: list[tuple[bytes, list[str]]], tmp_path: Path
) -> None:
    results = []
    for num_workers in (1, 2):
        out = tmp_path / str(num_workers)
        config = EvaluateConfig(
            checkpoint=checkpoint,
            root=dataset,
            benchmark="retrieval",
            num_workers=num_workers,
            batch_size=2,
            precision="float32",
            out=str(out),
        )
        results.append(evaluate(config)["metrics"])
        assert json.loads((out / "metrics.json").read_text())["metrics"] == results[-1]
    assert results[0] == results[1]

    tokenizer, size, length = Tokenizer(), model.config.image.image_size, model.config.text.context_length
    with torch.inference_mode():
        images = [model.encode_image(to_tensor(center_crop(decode_image(image), size))[None]) for image, _ in samples]
        texts = [
            model.encode_text(torch.from_numpy(tokenizer([caption], length).astype(np.int64)))
            for _, captions in samples
            for caption in captions
        ]
    image_embeddings = F.normalize(torch.cat([encoding.embedding for encoding in images]), dim=-1).numpy()
    text_embeddings = F.normalize(torch.cat(texts), dim=-1).numpy()
    owners = np.array([index for index, (_, captions) in enumerate(samples) for _ in captions])
    of_images, of_captions = caption_ranks(image_embeddings, text_embeddings, owners)
    for name, ranks in (("image_to_text", of_images), ("text_to_image", of_captions)):
        assert len(set(ranks)) > 2
        for count in (1, 5, 10):
            assert results[0][f"{name}_recall_{count}"] == pytest.approx(100 * np.mean(ranks < count))
        assert results[0][f"{name}_median_rank"] == np.median(ranks) + 1


def test_bad_input_is_one_line(
    checkpoint: str, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--benchmark", "retrieval", "--out", str(tmp_path / "out"), "--checkpoint"]
    assert main([*command, checkpoint, "--root", str(tmp_path)]) == 2
    assert "no dataset.json" in capsys.readouterr().err
    image = (Path(dataset) / "dataset.json").read_bytes()
    row = {"sample_id": "bad", "image": image, "captions": ["a dog"], "nouns": [[]], "width": 1, "height": 1}
    write_dataset(str(tmp_path / "one"), [row])
    assert main([*command, checkpoint, "--root", str(tmp_path / "one")]) == 2
    assert "has 1 images: retrieval compares each with each" in capsys.readouterr().err
    write_dataset(str(tmp_path / "bad"), [row, row])
    assert main([*command, checkpoint, "--root", str(tmp_path / "bad")]) == 2
    assert "sample bad: image: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
