import bz2
import gzip
import re
import sqlite3
import zipfile

import pytest

from tests.support.url_list_files import rows_of


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "url,caption\nu,c\n".encode("utf-16"), "line 1: is encoded in UTF-16"),
        ("x.jsonl", '{"url": "u", "caption": "c"}'.encode("utf-16-le"), "line 1: is encoded in UTF-16"),
        ("x.tsv", "url\tcaption\nu\tc\n".encode("utf-32"), "line 1: is encoded in UTF-32"),
        ("x.csv", b"caf\xe9,caption\nu,c\n", "line 1: the header is not UTF-8"),
        ("x.csv", b"url;caption\nu;c\n", "looks separated by semicolons"),
        ("x.csv", b"url\tcaption\nu\tc\n", "looks separated by tabs; name it .tsv"),
        ("x.tsv", b"url,caption\nu,c\n", "looks separated by commas; name it .csv"),
        ("x.csv", b"http://a/1.jpg,a dog\n", "lacks its header"),
        ("x.csv", b"url,url,caption\nu,v,c\n", "several columns may be the url: 'url' (column 1) and 'url' (column 2)"),
        ("x.csv", b"url,caption,caption\nu,c,d\n", "several columns may be the caption"),
        ("x.csv", b"<!DOCTYPE html>\n<html>404</html>\n", "is an HTML page"),
        ("x.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "is an xls workbook"),
        ("x.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("x.tsv", gzip.compress(b"url\tcaption\n", mtime=0), "is compressed with gzip; add .gz"),
        ("x.tsv", bz2.compress(b"url\tcaption\n"), "is compressed with bzip2; add .bz2"),
        ("x.tsv.gz", b"url\tcaption\nu\tc\n", "is not compressed with gz"),
        ("x.json", b'[{"url": "u", "caption": "c"},\n{"url" "u"}]', "line 2: is not JSON (Expecting ':' delimiter"),
        ("x.json", b'{"images": [],\n "annotations": [{]}', "line 2: is not JSON"),
        ("x.json", b'{"images": [],\n "annotations": [{"a": "caf\xe9"}]}', "line 2: byte 0xe9 is not UTF-8"),
        ("x.json", b'{"url": ["u", "v"], "caption": ["c", "d"]}', "url is [\"u\", \"v\"]"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused_with_what_was_found(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        rows_of(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert "corrupted" not in str(caught.value)  # copying it again would not help


def test_workbooks_and_databases_by_mistake(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.csv", "w") as file:
        file.writestr("xl/worksheets/sheet1.xml", "<worksheet/>")
    with sqlite3.connect(tmp_path / "x.tsv") as database:
        database.execute("create table images (url text, caption text)")
    database.close()
    for name, message in (("x.csv", "is a zip archive, as xlsx"), ("x.tsv", "is an SQLite database")):
        with pytest.raises(ValueError, match=message):
            rows_of(tmp_path / name)
