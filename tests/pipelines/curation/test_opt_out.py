import hashlib

import pytest

from pipelines.curation.opt_out import OptOutList, read_opt_out

SHA = "AB" * 32


def test_looks_up_urls_domains_and_files():
    listed = OptOutList(f"# mine\n\nhttp://Example.org/a.jpg#top\nphotos.net\n{SHA}\n")
    assert len(listed) == 3 and listed.any_sha256 and listed.has_sha256("ab" * 32) and not listed.has_sha256("00" * 32)
    for url in (
        "https://example.org/a.jpg",
        "http://photos.net/x",
        "https://u:p@www.Photos.NET:8080/y",
        "photos.net/z",
    ):
        assert listed.has_url(url), url
    for url in (
        "https://example.org/b.jpg",
        "http://example.org/A.jpg",
        "http://notphotos.net/x",
        "http://x/photos.net",
    ):
        assert not listed.has_url(url), url
    assert listed.has_url("http://[broken")  # nobody can say that it is not


def test_a_byte_order_mark_is_no_part_of_the_first_entry(tmp_path):
    (tmp_path / "list.txt").write_bytes(f"\ufeff{SHA}\r\nphotos.net\r\n".encode())
    listed, _ = read_opt_out(str(tmp_path / "list.txt"))
    assert listed is not None and listed.has_sha256(SHA) and listed.has_url("http://photos.net/x")


def test_reads_the_list(tmp_path):
    path = tmp_path / "list"
    path.write_bytes(b"photos.net\n")
    listed, digest = read_opt_out(str(path))
    assert listed is not None and len(listed) == 1 and digest == hashlib.sha256(b"photos.net\n").hexdigest()
    assert read_opt_out(None) == (None, None)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_opt_out(str(path))
    with pytest.raises(ValueError, match="cannot be read"):
        read_opt_out(str(tmp_path / "none"))
