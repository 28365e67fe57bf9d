"""Nouns and prompts."""

import subprocess
import sys

import numpy as np
import pytest
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from groupvit.captions import PROMPT_TEMPLATES, SUBSET_PROMPT_TEMPLATES, draw_prompts, mine_nouns


def test_templates_are_clips():
    assert [template.format("cat") for template in PROMPT_TEMPLATES] == [t("cat") for t in OPENAI_IMAGENET_TEMPLATES]
    subset = [template.format("cat") for template in SUBSET_PROMPT_TEMPLATES]
    assert subset == [t("cat") for t in SIMPLE_IMAGENET_TEMPLATES]
    assert len(set(PROMPT_TEMPLATES)) == 80 and len(subset) == 7


def test_nouns_are_mined_in_order_with_repetitions():
    captions = ["A brown dog and two cats sitting on the bench", "", "The dog chased the other Dog near Paris"]
    assert list(mine_nouns(captions)) == [["dog", "cats", "bench"], [], ["dog", "dog", "paris"]]


def test_verbs_are_an_option():
    assert list(mine_nouns(["A woman riding a horse"], include_verbs=True)) == [["woman", "riding", "horse"]]


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("IMG_2034.jpg", []),
        ("DSC01234", []),
        ("a dog in my_photos-03.PNG", ["dog"]),
        ("<PERSON> on a horse", ["person", "horse"]),
        ("5 apples & 50% !!!", ["apples"]),
        ("x" * 50_000, None),
    ],
)
def test_what_is_no_word_is_left_out(caption, nouns):
    mined = next(mine_nouns([caption]))
    assert nouns is None or mined == nouns


def test_an_unknown_tagger_is_refused():
    with pytest.raises(ValueError, match="tagger: no spaCy pipeline 'no_such_model'"):
        next(mine_nouns(["a dog"], tagger="no_such_model"))


def test_drawing_prompts_does_not_need_spacy():
    code = "import sys, groupvit.captions; sys.exit('spacy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prompts_are_nouns_in_templates_then_the_caption():
    caption = "A dog and a cat."
    for seed in range(50):
        prompts, keys = draw_prompts(["dog", "cat"], caption, 3, np.random.default_rng(seed))
        assert sorted(keys[:2]) == ["cat", "dog"] and keys[2] == prompts[2] == caption
        for prompt, key in zip(prompts[:2], keys[:2], strict=True):
            assert prompt in {template.format(key) for template in PROMPT_TEMPLATES}


def test_nouns_are_drawn_without_replacement_over_positions():
    seen = {tuple(draw_prompts(["dog", "dog", "cat"], "c", 2, np.random.default_rng(seed))[1]) for seed in range(60)}
    assert seen == {("dog", "dog"), ("dog", "cat"), ("cat", "dog")}


def test_nouns_and_templates_are_drawn_evenly():
    rng = np.random.default_rng(0)
    drawn = [draw_prompts(["ant", "bee", "cow", "doe"], "c", 1, rng) for _ in range(8000)]
    nouns = np.unique([keys[0] for _, keys in drawn], return_counts=True)[1]
    assert np.abs(nouns - 2000).max() < 5 * np.sqrt(2000)
    unfilled = [prompts[0].replace(keys[0], "{}") for prompts, keys in drawn]
    templates, counts = np.unique(unfilled, return_counts=True)
    assert set(templates) == set(PROMPT_TEMPLATES)
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100)


def test_nouns_fill_up_where_asked():
    rng = np.random.default_rng(0)
    prompts, keys = draw_prompts(["ant", "bee"], "c", 5, rng, templates=("a {}.",), padding="nouns")
    assert sorted(keys) in (["ant"] * 3 + ["bee"] * 2, ["ant"] * 2 + ["bee"] * 3)
    assert prompts == [f"a {key}." for key in keys]
    assert draw_prompts([], "c", 2, rng, padding="nouns")[1] == ["c", "c"]


def test_the_same_generator_state_gives_the_same_prompts():
    nouns = [f"noun{index}" for index in range(10)]
    first, second = (draw_prompts(nouns, "c", 3, np.random.default_rng(4)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("nouns", [[], ["dog"]])
def test_no_prompts_and_no_nouns(nouns):
    rng = np.random.default_rng(0)
    assert draw_prompts(nouns, "c", 0, rng) == ([], [])
    assert draw_prompts([], "c", 2, rng) == (["c", "c"], ["c", "c"])


def test_braces_in_nouns_are_plain_text():
    prompts, _ = draw_prompts(["{0}"], "c", 1, np.random.default_rng(0))
    assert "{0}" in prompts[0]
