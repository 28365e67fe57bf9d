"""Which of its captions a sample shows in an epoch: pure functions of seed, epoch and sample id."""

import hashlib
from collections.abc import Mapping, Sequence


def caption_index(num_captions: int, seed: int, epoch: int, sample_id: str) -> int:
    """Chooses the caption that a sample shows in an epoch. Each is shown once within `num_captions` epochs. The order
    is then drawn again.

    Drawn independently of the generators for augmentation and prompts, whose results do not depend on the number of
    captions. So runs with one caption per image resume bit for bit as before several were supported.
    """
    cycle, place = divmod(epoch, num_captions)
    keys = [hash_text(f"caption {seed} {cycle} {sample_id} {index}", 8) for index in range(num_captions)]
    return sorted(range(num_captions), key=keys.__getitem__)[place]


def mixed_caption_index(origins: Sequence[str], mix: Mapping[str, float], seed: int, epoch: int, sample_id: str) -> int:
    """Chooses a caption by its origin: first the origin, by weight, and then one of its captions, as `caption_index`
    does.

    If a sample lacks some origins of the mix, the others share the whole by their weights. If it lacks all of them, all
    its captions are used. With one origin, the choices are those of a data set that has only these captions.

    Args:
        origins: Origin of each caption of the sample.
        mix: Weights above 0, of any scale, by origin.
    """
    weights = {name: weight for name, weight in mix.items() if name in origins}
    if not weights:
        return caption_index(len(origins), seed, epoch, sample_id)
    left = hash_text(f"caption origin {seed} {epoch} {sample_id}", 8) / 2**64 * sum(weights.values())
    chosen = ""
    for name, weight in weights.items():
        chosen = name
        left -= weight
        if left < 0:
            break
    own = [index for index, name in enumerate(origins) if name == chosen]
    return own[caption_index(len(own), seed, epoch, sample_id)]


def hash_text(text: str, num_bytes: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=num_bytes).digest(), "little")
