"""Times are real but short; what is shown is read from stderr as a log would hold it."""

import re
import time

import pytest

from pipelines.console.progress import ProgressLine, duration


def test_the_last_line_has_the_time_taken_and_no_eta(capsys):
    progress = ProgressLine("scored", 20, "images", every_seconds=1e-6)
    progress.add(5, "50% kept")
    progress.add(15)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"scored 5 of 20 images  [\d,.]+/s  50% kept  ETA 0:00:00", first)
    assert re.fullmatch(r"scored 20 of 20 images  [\d,.]+/s  50% kept  in 0:00:00", last)


def test_a_context_shows_the_line_while_nothing_is_added(capsys):
    with ProgressLine("curated", 20, "rows", every_seconds=0.02):
        time.sleep(0.2)
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and set(lines) == {"curated 0 of 20 rows  0.0/s  ETA unknown"}
    assert last == "curated 0 of 20 rows  0.0/s  in 0:00:00"


def test_without_a_total_it_counts(capsys):
    with ProgressLine("read", None, "rows", every_seconds=1e-6) as progress:
        progress.add(7)
    lines = capsys.readouterr().err.splitlines()
    assert all(re.fullmatch(r"read [07] rows  [\d,.]+/s  after 0:00:00", line) for line in lines[:-1])
    assert re.fullmatch(r"read 7 rows  [\d,.]+/s  in 0:00:00", lines[-1])


def test_after_an_error_there_is_no_last_line(capsys):
    def fail():
        with ProgressLine("read", 7, "rows", every_seconds=60) as progress:
            progress.add(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05")])
def test_duration(seconds, text):
    assert duration(seconds) == text
