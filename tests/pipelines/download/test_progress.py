import json
import re
import threading
import time

from pipelines.download import progress as download_progress
from pipelines.download.progress import ShardProgress, read_progress, showing_progress


def test_a_shard_tells_how_far_it_is_until_it_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(download_progress, "_EVERY_SECONDS", 0)
    progress = ShardProgress(str(tmp_path), 7)
    assert read_progress(str(tmp_path)) == {}
    for succeeded in (True, False, True):
        progress.add(succeeded=succeeded)
    assert read_progress(str(tmp_path)) == {7: (3, 2)}
    progress.close()
    assert read_progress(str(tmp_path)) == {}


def test_counts_move_while_a_shard_is_fetched(tmp_path, monkeypatch, capsys):
    """One shard of 100 rows, which takes its time; nothing else would be seen of it before its end."""
    monkeypatch.setattr(download_progress, "_EVERY_SECONDS", 0)

    def fetch():
        progress = ShardProgress(str(tmp_path), 0)
        for number in range(100):
            progress.add(succeeded=number % 4 > 0)
            time.sleep(0.003)
        (tmp_path / "00000.parquet").touch()
        (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 100, "successes": 75}))
        progress.close()

    with showing_progress(str(tmp_path), 150, {3: {"count": 50, "successes": 50}}, 0.05):
        (tmp_path / "00003.parquet").touch()
        (tmp_path / "00003_stats.json").write_text(json.dumps({"count": 50, "successes": 50}))
        thread = threading.Thread(target=fetch)
        thread.start()
        thread.join()
    *lines, last = capsys.readouterr().err.splitlines()
    counts = [int(match[1]) for line in lines if (match := re.match(r"fetched (\d+) of 150 URLs .* ETA", line))]
    assert counts == sorted(counts) and len({count for count in counts if 50 < count < 150}) >= 3
    assert re.fullmatch(r"fetched 150 of 150 URLs  \d+/s  83% arrived  in 0:00:0\d", last)
