"""What documented commands read, small: made where the command will look for it, unless an earlier command of the page
has made it already.

To let a new command run, add what it reads to STAND_INS: a pattern of the path as it is written on the page, and a
method that makes it in a folder, or at a file, on this machine. Paths in a bucket are made here and copied there.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pyarrow import fs

from groupvit.checkpoint import save
from groupvit.config import to_dict
from groupvit.interop.official import to_official
from pipelines import storage
from pipelines.cli.main import main
from pipelines.experiments.catalogue import EXPERIMENTS
from tests.support.evaluation_folder import write_evaluation
from tests.support.hugging_face import small_hugging_face
from tests.support.image_files import png
from tests.support.image_server import ImageServer
from tests.support.miniatures import Photo, write_ade20k, write_coco, write_imagenet, write_voc
from tests.support.own_folder import write_own_folder
from tests.support.raw_formats import write_hugging_face, write_tars
from tests.support.raw_shards import good_rows
from tests.support.small_model import OFFICIAL, small_model

SCENES = ["--num-training-scenes", "64", "--num-calibration-scenes", "2", "--num-validation-scenes", "2"]
"""Sizes of the demo's data that are soon made."""


class StandIns:
    """Makes them. `cache` is a folder for what is made once and then copied."""

    def __init__(self, cache: Path, site: ImageServer) -> None:
        self._cache, self._site = cache, site

    def provide(self, place: str) -> None:
        """Makes what is to be at `place`, a path as a page has it, if nothing is there and it is known what should be.

        Nothing is done for a word that is not such a path: most words of a command are none.
        """
        for pattern, make in STAND_INS.items():
            if found := re.match(pattern, place):
                root = found["root"]
                if _holds_files(storage.join(root, *KNOWN_BY.get(make, ()))):
                    return
                made = self._cache / make.__name__.strip("_") / Path(root).name
                if not made.exists():
                    made.parent.mkdir(parents=True, exist_ok=True)
                    make(self, made)
                _copy(made, root)
                return

    def _demo_data(self, folder: Path) -> None:
        assert main(["demo-data", "shapes", "--out", str(folder), *SCENES, "--num-processes", "1"]) == 0

    def _raw_shards(self, folder: Path) -> None:
        scenes = folder.with_name("scenes")
        assert main(["demo-data", "shapes", "--raw", "--out", str(scenes), *SCENES, "--num-processes", "1"]) == 0
        shutil.copytree(scenes / "raw", folder)

    def _tars(self, folder: Path) -> None:
        write_tars(folder, good_rows(range(40)), 10)

    def _hugging_face_parquet(self, folder: Path) -> None:
        write_hugging_face(folder, good_rows(range(40, 80)), 20)

    def _flickr8k(self, folder: Path) -> None:
        """Photographs with five captions each, in two tables beside them."""
        folder.mkdir(parents=True)
        for table, rows in {"train": good_rows(range(40)), "held-out": good_rows(range(40, 56))}.items():
            lines = ["image\tcaption\n"]
            for row in rows:
                (folder / f"{row['key']}.jpg").write_bytes(row["jpg"])
                lines += [f"{row['key']}.jpg\t{row['caption']} , seen {number} times .\n" for number in range(2, 7)]
            (folder / f"{table}.tsv").write_text("".join(lines))

    def _recaptions(self, file: Path) -> None:
        """Of the images of the raw shards above."""
        raw = self._cache / "recaptioned/raw"
        if not raw.exists():
            self._raw_shards(raw)
        urls = pq.read_table(sorted(map(str, raw.glob("*.parquet"))), columns=["url"]).column("url").to_pylist()
        pq.write_table(pa.table({"url": urls, "caption": [f"a drawn scene, at {url}" for url in urls]}), file)

    def _dataset(self, folder: Path) -> None:
        scenes = self._cache / "scenes"
        if not scenes.exists():
            self._demo_data(scenes)
        shutil.copytree(scenes / "train", folder)

    def _url_list(self, file: Path) -> None:
        """CC3M's list, or CC12M's, which has the URL first."""
        good = [row for row in self._site.rows if row.case == "good"]
        self._site.write_list(file, good)
        if file.name.startswith("cc12m"):
            file.write_text("".join(f"{row.url}\t{row.caption}\n" for row in good))

    def _photo(self, file: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels.repeat(10, axis=0).repeat(10, axis=1)).save(file)

    def _released_weights(self, file: Path) -> None:
        torch.save({"model": to_official(small_model(OFFICIAL))}, file)

    def _hugging_face(self, folder: Path) -> None:
        small_hugging_face(folder)

    def _checkpoint(self, folder: Path) -> None:
        save(folder, small_model(OFFICIAL))

    def _run(self, folder: Path) -> None:
        """A run of an experiment of its name (else the paper's), as far as is read of one that was made elsewhere."""
        experiment = EXPERIMENTS.get(folder.name, EXPERIMENTS["gcc_yfcc_30e"])()
        state = {"step": 100, "train_seconds": 1000.0, "config": to_dict(experiment)}
        save(folder / "checkpoints/step-00000100", small_model(OFFICIAL), state=state)

    def _evaluation(self, folder: Path) -> None:
        seed = ord(folder.name)
        write_evaluation(folder, {"seen": np.random.default_rng(seed).uniform(0.2, 0.8, 20).tolist()}, seed=seed)

    def _evaluated_run(self, folder: Path) -> None:
        """Two evaluations, as they lie beside its checkpoints."""
        for step in (1000, 2000):
            rng = np.random.default_rng(step + ord(folder.name))
            scores = {"seen": rng.uniform(0.2, 0.8, 20).tolist()}
            write_evaluation(folder / f"evaluation/step-{step:08d}", scores, seed=ord(folder.name), step=step)

    def _benchmarks(self, folder: Path) -> None:
        photos = _drawn_photos()
        write_voc(folder, photos)
        write_coco(folder / "coco", photos)
        write_ade20k(folder, photos)
        voc2010 = folder / "VOCdevkit/VOC2010"
        shutil.copytree(folder / "VOCdevkit/VOC2012/JPEGImages", voc2010 / "JPEGImages")
        size = {"height": 300, "width": 400}
        images = [{"image_id": number, "file_name": f"{photo.name}.jpg", **size} for number, photo in enumerate(photos)]
        for image in images:
            image["phase"] = "val"
        merged = {"images": images, "annos_segmentation": [], "annos_occlusion": [], "annos_boundary": []}
        (voc2010 / "trainval_merged.json").write_text(json.dumps(merged))

    def _imagenet(self, folder: Path) -> None:
        write_imagenet(folder, _drawn_photos(), num_images=4)

    def _own_folder(self, folder: Path) -> None:
        write_own_folder(folder, "coco")


STAND_INS: Mapping[str, Callable[[StandIns, Path], None]] = {
    r"(?P<root>data/(stamps|shapes))(/|$)": StandIns._demo_data,
    r"(?P<root>data/flickr8k/images)(/|$)": StandIns._flickr8k,
    r"(?P<root>data/flickr8k/[\w-]+)$": StandIns._dataset,
    r"(?P<root>data/imagenet)$": StandIns._imagenet,
    r"(?P<root>data|s3://bucket/benchmarks)$": StandIns._benchmarks,
    r"(?P<root>(s3://bucket|data)/[\w-]*raw[\w-]*)$": StandIns._raw_shards,
    r"(?P<root>pictures)$": StandIns._own_folder,
    r"(?P<root>s3://bucket/[\w-]+-tars)/": StandIns._tars,
    r"(?P<root>data/[\w-]+-hf)$": StandIns._hugging_face_parquet,
    r"(?P<root>evaluation/[a-z])$": StandIns._evaluation,
    r"(?P<root>runs/[a-z])$": StandIns._evaluated_run,
    r"(?P<root>runs/demo/stamps-seed-0)(/|$)": StandIns._run,
    r"(?P<root>(s3://bucket/|)runs/[\w-]+)(/|$)": StandIns._run,
    r"(?P<root>s3://bucket/[\w-]+-llava\.parquet)$": StandIns._recaptions,
    r"(?P<root>(s3://bucket|data)/[\w-]+)$": StandIns._dataset,
    r"(?P<root>checkpoints/[\w-]+)$": StandIns._checkpoint,
    r"(?P<root>groupvit-gcc-yfcc)$": StandIns._hugging_face,
    r"(?P<root>.+\.pth)$": StandIns._released_weights,
    r"(?P<root>.+\.jpg)$": StandIns._photo,
    r"(?P<root>.+\.tsv)$": StandIns._url_list,
}
KNOWN_BY: Mapping[Callable[[StandIns, Path], None], tuple[str, ...]] = {StandIns._benchmarks: ("VOCdevkit",)}
"""What shows that it is there, where the folder may hold other things as well."""


def _drawn_photos() -> list[Photo]:
    """Three images of 400 x 300 with labels, in the place of VOC's."""
    photos = []
    for index in range(3):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(50, axis=0).repeat(50, axis=1)
        values = np.zeros((300, 400), np.uint8)
        values[60:240, 80:320], values[100:180, 120:200] = (7, 5, 15)[index], 255
        labels, jpeg = png(values), png(pixels)
        photos.append(Photo(f"2011_{index:06d}", jpeg, labels))
    return photos


def _holds_files(place: str) -> bool:
    """Whether a file is there, or a folder with some: SeaweedFS shows a folder for a while after its last file went."""
    filesystem, path = storage.resolve(place)
    found = [filesystem.get_file_info(path)]
    if found[0].type == fs.FileType.Directory:
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    return any(info.type == fs.FileType.File for info in found)


def _copy(made: Path, root: str) -> None:
    for file in sorted([made] if made.is_file() else [path for path in made.rglob("*") if path.is_file()]):
        place = root if made.is_file() else storage.join(root, file.relative_to(made).as_posix())
        storage.write_bytes(place, file.read_bytes())
