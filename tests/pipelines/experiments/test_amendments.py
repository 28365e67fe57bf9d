"""Amendments: what they say, and what follows from them at a step."""

import pytest

from groupvit.config import OptimizerConfig
from pipelines.experiments.amendments import Amendment, check_amendments, is_skipped, optimizer_at, weights_by_step


def check(*amendments: str) -> None:
    check_amendments(amendments, num_steps=100, num_sources=2)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("from 120000: data.weights=0.7,0.3", "from 120000: data.weights=0.7,0.3"),
        (" from  90_000 :optimizer.learning-rate = 1e-4 ", "from 90000: optimizer.learning_rate=0.0001"),
        ("skip 118_400:118500", "skip 118400:118500"),
    ],
)
def test_texts_of_the_same_amendment_are_equal(text: str, canonical: str) -> None:
    assert str(Amendment.parse(text)) == canonical
    assert Amendment.parse(canonical) == Amendment.parse(text)


def test_a_number_is_recorded_whole() -> None:
    text = "from 7: optimizer.learning_rate=0.00012345678901"
    assert Amendment.parse(str(Amendment.parse(text))) == Amendment.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("at 7: data.weights=1,2", "is not an amendment: give e.g. "),
        ("from 7: training.seed=3", "training.seed is fixed for the whole run"),
        ("from 7: optimizer.learning_rate=fast", "fast are not numbers"),
        ("from 7: optimizer.learning_rate=1e-4,2", "give one number"),
        ("from 7: optimizer.learning_rate=nan", "every number must be above 0"),
        ("from 7: data.weights=1,0", "every number must be above 0"),
        ("from 7: data.weights=1,2,3", "has 3 weights for 2 data.sources: give one each"),
        ("from 100: optimizer.learning_rate=1e-4", "is beyond training.num_steps=100"),
        ("skip 90:101", "is beyond training.num_steps=100"),
        ("skip 9:9", "skips nothing"),
        ("skip _:5", "is not an amendment: give e.g."),
        ("from 1__0: optimizer.learning_rate=1", "is not an amendment: give e.g."),
    ],
)
def test_what_cannot_be_followed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check(text)
    assert str(error.value).startswith(f"--amend {text!r}") and "\n" not in str(error.value)


def test_two_values_from_the_same_step_contradict() -> None:
    with pytest.raises(ValueError, match=r"contradicts 'from 7: optimizer.learning_rate=0.1': give one of them"):
        check("from 7: optimizer.learning_rate=0.1", "from 7: optimizer.learning_rate=0.2")


def test_what_follows_at_a_step() -> None:
    amendments = (
        "from 50: optimizer.learning_rate=0.5",
        "skip 10:12",
        "from 20: optimizer.learning_rate=0.2",
        "from 30: data.weights=3,1",
        "from 5: data.weights=1,1",
    )
    check(*amendments)
    config = OptimizerConfig(learning_rate=0.7)
    rates = {step: optimizer_at(config, amendments, step).learning_rate for step in (0, 19, 20, 49, 50, 99)}
    assert rates == {0: 0.7, 19: 0.7, 20: 0.2, 49: 0.2, 50: 0.5, 99: 0.5}
    assert [step for step in range(100) if is_skipped(amendments, step)] == [10, 11]
    assert weights_by_step(amendments) == [(5, (1.0, 1.0)), (30, (3.0, 1.0))]
