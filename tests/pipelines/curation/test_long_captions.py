import pytest

from groupvit.tokenizer import Tokenizer
from pipelines.curation.long_captions import cut_captions

SENTENCE = "A red bus stands in a street, and two people wait beside it."  # 15 tokens, without start and end
ODD = "Dr. Smith, e.g. the man on the left, is No. 5 of approx. nine people at 5 p.m. in St. Louis."


def test_what_fits_is_not_changed() -> None:
    texts = [SENTENCE, "no full stop", " ".join([SENTENCE] * 5), ""]
    assert Tokenizer().lengths(texts) == [17, 5, 77, 2]
    assert cut_captions(texts, 77) == texts


@pytest.mark.parametrize("context_length", [17, 18, 31, 32, 76, 77])
def test_keeps_the_whole_sentences_that_fit(context_length: int) -> None:
    num_fitting = (context_length - 2) // 15
    [cut] = cut_captions([" ".join([SENTENCE] * 9)], context_length)
    assert cut == " ".join([SENTENCE] * num_fitting)


def test_abbreviations_and_numbers_end_no_sentence() -> None:
    length = Tokenizer().lengths([ODD])[0]
    for context_length in range(length, 2 * length - 2):
        assert cut_captions([f"{ODD} {ODD}"], context_length) == [ODD]


def test_a_first_sentence_that_is_too_long_is_cut_after_a_word() -> None:
    tokenizer = Tokenizer()
    words = [f"item{index}," for index in range(40)]
    for context_length in (5, 6, 7, 20, 40, 59):
        [cut] = cut_captions([" ".join(words)], context_length)
        kept = cut.split()
        assert [f"{word.rstrip(',')}," for word in kept] == words[: len(kept)] and not cut.endswith(",")
        following = f"{cut}, {words[len(kept)].rstrip(',')}"
        fits, does_not = tokenizer.lengths([cut, following])
        assert fits <= context_length < does_not + 1


def test_nothing_is_left_of_a_word_that_does_not_fit() -> None:
    assert cut_captions(["x1" * 500, "x1" * 500 + " and a dog"], 77) == ["", ""]


def test_other_alphabets_and_odd_characters_are_not_cut_within_a_word() -> None:
    for word in ("Straßenbahn", "собака", "naïveté", "🚍🚌", "東京都"):
        [cut] = cut_captions([" ".join([word] * 200)], 77)
        assert cut and set(cut.split()) == {word}
