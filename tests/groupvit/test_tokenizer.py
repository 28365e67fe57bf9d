"""The tokeniser against open_clip's copy of the reference."""

import gzip
import random
import unicodedata

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from groupvit.tokenizer import END_OF_TEXT, START_OF_TEXT, Tokenizer, clean

CAPTIONS = [
    "",
    "   ",
    "a photo of a dog",
    "A Photo\tOf\n a   DOG!!!",
    "they're we've i'm you'll he'd it's don't",
    "it'ſ the long s, ſhip",
    "Tom &amp; Jerry &amp;amp; co &lt;b&gt;",
    "schÃ¶n â€œquotedâ€\x9d cafÃ©",
    "naïve café — œuvre “smart quotes” …",
    "日本の桜 と 富士山",
    "кот сидит на окне",
    "كلب في الحديقة",
    "😀👍🏽👨‍👩‍👧‍👦 emoji",
    "½ ² Ⅷ 1234567890 3.14",
    "zero\u200bwidth\u00a0space \ufeff",
    "İstanbul STRASSE ẞ ﬁne",
    "\x1b[31mred\x1b[0m",
    "http://example.com/a_b?c=d&e=f #tag @user",
    "word " * 200,
    "supercalifragilisticexpialidocious" * 20,
    "a\u0301 combining e\u0308",
    "<PERSON> holds a cup",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.mark.parametrize("context_length", [8, 77])
def test_equals_the_reference_on_chosen_captions(tokenizer, reference, context_length):
    expected = reference(CAPTIONS, context_length).numpy()
    np.testing.assert_array_equal(tokenizer(CAPTIONS, context_length), expected)


def test_equals_the_reference_on_random_mixtures_of_words_and_characters(tokenizer, reference):
    rng = random.Random(0)
    pieces = [word for caption in CAPTIONS for word in caption.split()] + [chr(code) for code in range(32, 0x2FF)]
    captions = [rng.choice(["", " "]).join(rng.choices(pieces, k=rng.randint(1, 40))) for _ in range(1000)]
    np.testing.assert_array_equal(tokenizer(captions), reference(captions).numpy())


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cn", "Cs"]), max_size=60))
@example(text="Ö\x8b:")  # fixed as if it were broken, into U+058B
@example(text="a\u0345 b\u0345c \u0345")  # dropped by the reference
def test_equals_the_reference_on_any_text(tokenizer, reference, text):
    # Code points that Python's Unicode tables do not know are left out, also those that fixing broken text makes: the
    # two regular expression engines may already disagree on whether those are letters.
    assume(all(unicodedata.category(character) != "Cn" for character in clean(text)))
    np.testing.assert_array_equal(tokenizer([text]), reference([text]).numpy())


@pytest.mark.parametrize("text", ["<end_of_text>", "<start_of_text>", "a <END_OF_TEXT> b", "<|endoftext|>"])
def test_text_cannot_inject_a_special_token(tokenizer, text):
    ids = tokenizer([text])[0]
    assert np.count_nonzero(ids == START_OF_TEXT) == 1
    assert np.count_nonzero(ids == END_OF_TEXT) == 1
    assert ids.argmax() == np.count_nonzero(ids) - 1


def test_truncation_keeps_the_end_of_text(tokenizer):
    ids = tokenizer(["cat " * 100], 10)[0]
    assert ids[0] == START_OF_TEXT and ids[-1] == END_OF_TEXT
    assert (ids[1:-1] == ids[1]).all()


def test_result_is_int32_and_padded_with_zeros(tokenizer):
    ids = tokenizer(["cat", "a dog"])
    assert ids.dtype == np.int32 and ids.shape == (2, 77)
    assert (ids[0, 3:] == 0).all() and ids[0, 2] == END_OF_TEXT
    assert tokenizer([]).shape == (0, 77)


def test_the_shortcut_for_plain_text_changes_nothing(tokenizer, reference):
    printable = "".join(chr(code) for code in range(32, 127) if chr(code) != "&")
    assert clean(printable) == reference.clean_fn(printable)


def test_bad_arguments_are_refused(tokenizer):
    with pytest.raises(ValueError, match="one string"):
        tokenizer("a dog")
    with pytest.raises(ValueError, match="context_length"):
        tokenizer(["a dog"], 1)


def test_a_changed_vocabulary_is_refused(tmp_path):
    path = tmp_path / "vocabulary.txt.gz"
    path.write_bytes(gzip.compress(b"not the vocabulary"))
    with pytest.raises(ValueError, match="sha256"):
        Tokenizer(path)
