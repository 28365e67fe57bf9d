"""A folder of your own: images, a list of classes, and the truth as label files or as annotations of other tools.

    DIR/images/**                 JPEG, PNG, WebP, GIF, BMP or TIFF
    DIR/classes.txt               a line per class; see `class_file`
    DIR/labels/**                 NAME.png for images/NAME.jpg: value k is line k of classes.txt, from 0; 255 is ignored
    or DIR/coco.json              annotations in COCO's format; see `coco_annotations`
    or DIR/label-studio.json      an export of Label Studio; see `label_studio_export`

Pixels in no region are background if classes.txt begins with it, else they are ignored. Images without annotation are
left out.
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Collection
from pathlib import PurePosixPath

from pipelines import storage
from pipelines.benchmarks.annotated import AnnotatedDataset
from pipelines.benchmarks.class_file import read_class_file
from pipelines.benchmarks.class_lists import LabelClass
from pipelines.benchmarks.coco_annotations import read_coco
from pipelines.benchmarks.dataset import BACKGROUND, SegmentationDataset
from pipelines.benchmarks.files import IGNORED, FileDataset, digest_of, open_files
from pipelines.benchmarks.label_studio_export import read_label_studio

NAME = "folder"
IMAGES, LABELS, CLASSES = "images", "labels", "classes.txt"
COCO, LABEL_STUDIO = "coco.json", "label-studio.json"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings, in any case, of the files in `images` that are images."""
MAX_BYTES = 2**28
"""Largest file of annotations, 268 MB. Python's objects take about ten times as much memory."""


def open_folder(root: str) -> SegmentationDataset:
    """Opens it. Prints to stderr how many images are left out. Raises ValueError if anything is missing or invalid."""
    root = storage.absolute(root)
    try:
        classes = read_class_file(storage.join(root, CLASSES))
    except FileNotFoundError:
        storage.check_bucket(root)
        raise ValueError(
            f"root={root} is not a folder of images with masks: {storage.join(root, CLASSES)} does not exist; write a "
            "name of a class per line"
        ) from None
    sizes = storage.list_sizes(storage.join(root, IMAGES))
    images = {name: size for name, size in sizes.items() if PurePosixPath(name).suffix.lower() in ENDINGS}
    if not images:
        raise ValueError(f"root={root} has no image in {storage.join(root, IMAGES)}: put them there")
    labels = [name for name in storage.list_sizes(storage.join(root, LABELS)) if name.endswith(".png")]
    files = [name for name in (COCO, LABEL_STUDIO) if storage.exists(storage.join(root, name))]
    if (kinds := [*([f"{LABELS}/*.png"] if labels else []), *files]) and len(kinds) > 1:
        raise ValueError(f"root={root} has {' and '.join(kinds)}: leave the one with the masks to be compared with")
    if labels:
        dataset = _with_label_files(root, classes, images, labels)
    elif files:
        dataset = _with_annotations(root, files[0], classes, images)
    else:
        raise ValueError(f"root={root} has no masks: none of {LABELS}/*.png, {COCO} and {LABEL_STUDIO} exists")
    if not dataset.part_of_scene:
        raise ValueError(f"root={root}: none of the {len(images):,} images is annotated in {kinds[0]}")
    if left_out := len(images) - len(dataset.part_of_scene):
        print(f"{NAME}: {left_out:,} of {len(images):,} images have no masks in {kinds[0]}: left out", file=sys.stderr)
    return dataset


def _with_label_files(
    root: str, classes: tuple[LabelClass, ...], images: Collection[str], labels: list[str]
) -> FileDataset:
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in images:
        by_stem[str(PurePosixPath(name).with_suffix(""))].append(name)
    pairs: list[tuple[str, str]] = []
    for label in labels:
        found = by_stem[label.removesuffix(".png")]
        if len(found) != 1:
            kind = (
                f"is for {' and '.join(sorted(found))}: rename one" if found else "has no image: add it, or remove this"
            )
            raise ValueError(f"{storage.join(root, LABELS, label)} {kind}")
        pairs.append((f"{IMAGES}/{found[0]}", f"{LABELS}/{label}"))
    values = {label: label for label in range(len(classes))} | {IGNORED: IGNORED}
    return open_files(root, NAME, classes, values, pairs, official_counts=(), page="where they were")


def _with_annotations(
    root: str, annotations: str, classes: tuple[LabelClass, ...], images: dict[str, int]
) -> AnnotatedDataset:
    uri = storage.join(root, annotations)
    content = storage.read_bytes(uri, MAX_BYTES)
    labels = {entry.name: label for label, entry in enumerate(classes)}
    is_coco = annotations == COCO
    found = read_coco(content, uri, labels) if is_coco else read_label_studio(content, uri, labels, images)
    if missing := sorted(found.keys() - images.keys()):
        raise ValueError(
            f"{uri} has {len(missing):,} images that are not in {storage.join(root, IMAGES)}, the first is "
            f"{missing[0][:200]!r}: add them, or take them out of the annotations"
        )
    names = tuple(entry.name for entry in classes)
    annotated = [found[name] for name in sorted(found)]
    digest = hashlib.sha256(content).hexdigest()
    return AnnotatedDataset(
        uri=storage.join(root, IMAGES),
        benchmark=NAME,
        classes=names,
        words=tuple(entry.words for entry in classes if entry.name != BACKGROUND),
        colours=None,
        parts=(NAME,),
        digest=digest_of(NAME, names, [digest, *((entry.file, images[entry.file]) for entry in annotated)]),
        part_of_scene=(NAME,) * len(annotated),
        annotations=uri,
        images=tuple(annotated),
        unlabelled=0 if names[0] == BACKGROUND else IGNORED,
    )
