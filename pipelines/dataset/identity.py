"""What identifies samples and data sets: hashes of images, captions, and the layout in row groups."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

ORIGINAL = "original"
"""Origin of the captions that the images came with. Recaptions have the names that `groupvit curate --as` gave."""


def sample_id(image: bytes, *captions: str) -> str:
    """Hashes an image and its original captions, in order, to 32 hexadecimal digits. Stable across re-runs; recaptions
    do not change it.
    """
    digest = hashlib.sha256(hashlib.sha256(image).digest())  # hashed apart, so that no byte can move between the two
    if len(captions) == 1:
        digest.update(captions[0].encode())  # the same id as in data sets of schema 1
    else:
        for caption in captions:
            digest.update(hashlib.sha256(caption.encode()).digest())
    return digest.hexdigest()[:32]


def original_captions(row: Mapping[str, Any]) -> list[str]:
    """Returns the captions of a row that `sample_id` hashes: all but the recaptions."""
    if "caption_origins" not in row:
        return row["captions"]
    pairs = zip(row["captions"], row["caption_origins"], strict=False)  # a corrupted row may have fewer of one
    return [caption for caption, origin in pairs if origin == ORIGINAL]


def identity(row: Mapping[str, Any]) -> str:
    """Returns the line of a sample in the digest of its row group: its id, and a hash of the recaptions that it has."""
    pairs = zip(row["captions"], row["caption_origins"], strict=False) if "caption_origins" in row else ()
    recaptions = [part for caption, origin in pairs if origin != ORIGINAL for part in (origin, caption)]
    if not recaptions:
        return row["sample_id"]
    hashes = [hashlib.sha256(str(part).encode()).hexdigest() for part in recaptions]
    return f"{row['sample_id']} {digest(hashes)}"


def digest_of_manifest(manifest: pa.Table) -> str:
    """Hashes a data set, from the columns `rows` and `digest`."""
    return digest(f"{group['rows']} {group['digest']}" for group in manifest.select(["rows", "digest"]).to_pylist())


def digest(lines: Iterable[str]) -> str:
    """Hashes lines to 32 hexadecimal digits. For a row group, the lines are those of `identity`."""
    hasher = hashlib.sha256()
    for line in lines:
        hasher.update(f"{line}\n".encode())
    return hasher.hexdigest()[:32]
