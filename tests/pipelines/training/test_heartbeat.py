"""A line comes in time, however long a step takes."""

import itertools
import time

from pipelines.training.heartbeat import Heartbeat
from pipelines.training.progress import Clock


def test_silence_is_broken() -> None:
    lines: list[tuple[float, str]] = []
    start = time.monotonic()
    with Heartbeat(lambda line: lines.append((time.monotonic() - start, line)), lambda: "at work", 1.0) as heartbeat:
        time.sleep(2.7)
        heartbeat.say("a step")
        time.sleep(0.5)  # without what was said, a line would be due
    time.sleep(1.2)
    *between, (_, last) = lines
    assert len(between) >= 2 and {line for _, line in between} == {"at work"} and last == "a step"
    assert all(later - earlier >= 0.99 for (earlier, _), (later, _) in itertools.pairwise([(0.0, ""), *between]))


def test_no_line_is_added_while_others_come() -> None:
    lines: list[str] = []
    with Heartbeat(lines.append, lambda: "at work", 2.0) as heartbeat:
        for _ in range(5):
            assert not heartbeat.is_due
            heartbeat.say("a step")
            time.sleep(0.05)
    assert lines == ["a step"] * 5


def test_the_line_in_between_names_the_step_and_what_it_is_at() -> None:
    clock = Clock(first_step=7, num_steps=100, global_batch_size=64, seconds_before=0.0)
    with clock.waiting():
        assert clock.activity() == "step 8/100  waiting for data for 0:00:00"
    assert clock.activity() == "step 8/100  computing for 0:00:00"
    clock.update(8)
    assert clock.activity().startswith("step 9/100 ")
    assert clock.line(8, 1.5).startswith("step 8/100  loss 1.5000  ")


def test_the_rate_is_that_of_the_stretch_since_the_last_lap() -> None:
    clock = Clock(first_step=0, num_steps=10, global_batch_size=100, seconds_before=0.0)
    with clock.waiting():
        pass
    for done in (1, 2):
        time.sleep(0.1)
        clock.update(done)
        assert 100 < clock.metrics()["images_per_second"] <= 1000  # of all steps since the start
    clock.lap()
    time.sleep(0.2)
    clock.update(3)
    assert 50 < clock.metrics()["images_per_second"] <= 500
