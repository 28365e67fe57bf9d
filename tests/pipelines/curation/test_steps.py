from collections import defaultdict

import pytest
from PIL import Image

from pipelines.curation.config import CurateConfig
from pipelines.curation.opt_out import OptOutList
from pipelines.curation.pieces import run_steps
from pipelines.curation.steps import Sample, sample_steps
from tests.support.image_files import encoded, png_that_promises
from tests.support.raw_shards import picture, raw_row

CONFIG = CurateConfig(raw=("x",), out="y", min_similarity=0.2)
GOOD = encoded(picture(0), quality=85)
FRAMES = [picture(seed) for seed in range(2)]


def run(raw, config=CONFIG, opt_out=None):
    sample, seconds = Sample(raw=raw), defaultdict(float)
    return run_steps(sample, sample_steps(config, opt_out), seconds), sample


@pytest.mark.parametrize(
    ("reason", "columns"),
    [
        ("download_http_404", {"image": None}),
        ("download_empty", {"image": b""}),
        ("download_empty", {"image": None, "status": None}),
        ("nsfw", {"nsfw": "nsfw"}),
        ("nsfw", {"nsfw": "true"}),
        ("nsfw", {"nsfw": "True"}),
        ("nsfw", {"nsfw": "1"}),
        ("nsfw", {"punsafe": 0.9}),
        ("watermark", {"pwatermark": 0.9}),
        ("similarity_too_low", {"similarity": 0.1}),
        ("caption_empty", {"caption": " <b> "}),
        ("caption_empty", {"captions": [None, "", "nan"]}),
        ("caption_empty", {"caption": "nan"}),
        ("caption_is_a_name", {"caption": "https://example.org/IMG_2034.jpg"}),
        ("caption_is_a_name", {"captions": ["IMG_2034.JPG", "ab"]}),
        ("caption_too_short", {"caption": "ab"}),
        ("caption_too_long", {"caption": "w" * 50_000}),
        ("caption_too_long", {"caption": "word " * 200}),
        ("caption_too_long", {"caption": "w" * 2000}),
        ("caption_few_letters", {"caption": "2023-01-05 12:33"}),
        ("caption_other_alphabet", {"caption": "собака и мяч"}),
        ("image_unidentified", {"image": b"<html>"}),
        ("image_damaged", {"image": GOOD[:-500]}),
        ("image_too_many_pixels", {"image": png_that_promises(10_000, 9_000)}),
        ("image_too_many_pixels", {"image": png_that_promises(60_000, 60_000)}),
        ("image_animated", {"image": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])}),
        ("image_too_small", {"image": encoded(picture(0, 200, 63))}),
        ("image_aspect_ratio", {"image": encoded(picture(0, 401, 100))}),
        ("image_mode", {"image": encoded(Image.new("F", (90, 90)), "TIFF")}),
        (None, {"similarity": 0.3, "punsafe": 0.1, "pwatermark": None, "nsfw": "UNLIKELY"}),
        (None, {"nsfw": "False"}),
        (None, {"nsfw": "0"}),
        (None, {"nsfw": "0.0"}),
        (None, {"image": encoded(picture(0, 400, 100))}),
        (None, {"caption": "a happy family \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467"}),
        (None, {"caption": "a bell\x07 and \x1b[31m red"}),
        (None, {"captions": ["IMG_2034.JPG", "a dog"]}),
    ],
)
def test_every_case_has_its_reason(reason, columns):
    image = columns.pop("image", GOOD)
    found, sample = run(raw_row(1, image, **columns))
    assert found == reason
    assert (reason is None) == bool(sample.image)


def test_of_several_captions_each_is_kept_once_or_has_its_reason():
    captions = ["  a dog", None, "nan", "x.jpg", "a  dog ", "2023-01-05 12:33", "собака", "a cat"]
    reason, sample = run(raw_row(1, GOOD, captions=captions))
    assert reason is None and sample.captions == ["a dog", "a cat"]
    assert sample.caption_drops == {
        "caption_empty": 2,
        "caption_is_a_name": 1,
        "caption_repeated": 1,
        "caption_few_letters": 1,
        "caption_other_alphabet": 1,
    }
    assert run(raw_row(1, GOOD, captions=[None, "a dog"]))[1].captions == ["a dog"]
    assert run(raw_row(1, GOOD, "a dog", captions=[]))[1].captions == ["a dog"]


def test_switched_off_rules_let_pass():
    config = CurateConfig(
        raw=("x",),
        out="y",
        max_aspect_ratio=None,
        max_words=None,
        max_characters=None,
        min_letter_share=None,
        min_latin_share=None,
        max_punsafe=None,
        max_pwatermark=None,
        dropped_nsfw_labels=(),
    )
    caption = "собака 1234567890 " * 200
    row = raw_row(1, encoded(picture(0, 900, 80)), caption, punsafe=1.0, pwatermark=1.0, nsfw="NSFW", similarity=-1.0)
    assert run(row, config)[0] is None


def test_opt_out_by_url_and_by_file():
    row = raw_row(1, GOOD)
    assert run(row, opt_out=OptOutList("example.org"))[0] == "opt_out_list"
    assert run(row, opt_out=OptOutList(row["sha256"]))[0] == "opt_out_list"
    unnamed = {**row, "sha256": None, "url": None}
    assert run(unnamed, opt_out=OptOutList(row["sha256"]))[0] == "opt_out_list"
    assert run(row, opt_out=OptOutList("example.com"))[0] is None


def test_what_is_right_is_copied_and_the_rest_is_encoded():
    copied = run(raw_row(1, GOOD))[1]
    assert copied.image == GOOD and (copied.width, copied.height) == (96, 80)
    large = run(raw_row(1, encoded(picture(0, 600, 400))))[1]
    with_header = Image.open(__import__("io").BytesIO(large.image))
    assert with_header.format == "JPEG" and with_header.size == (large.width, large.height) == (384, 256)
    assert run(raw_row(1, encoded(picture(0), "PNG")))[1].image[:2] == b"\xff\xd8"
