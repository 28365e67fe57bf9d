import codecs
import json

import pytest

from tests.support.url_list_files import PAIRS, pairs_of, rows_of, write


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_is_read_by_its_content_not_its_name(tmp_path, ending):
    records = [{"url": url, "caption": caption} for url, caption in PAIRS]
    path = tmp_path / f"x.{ending}"
    for text in (json.dumps(records), json.dumps(records, indent=1), "\n".join(map(json.dumps, records))):
        assert pairs_of(write(path, text)) == PAIRS
        path.write_bytes(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode())
        assert pairs_of(path) == PAIRS


def test_a_long_array_is_read_piece_by_piece(tmp_path):
    records = [{"url": f"http://a/{number}", "caption": f"é {number} " + "x" * 200} for number in range(30_000)]
    rows = rows_of(write(tmp_path / "x.json", json.dumps(records, indent=1)))  # 8 MB
    assert [(row["url"], row["caption"]) for row in rows] == [(row["url"], row["caption"]) for row in records]
