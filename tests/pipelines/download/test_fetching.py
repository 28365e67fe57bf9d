"""What a download keeps of an image."""

import io
import zlib

from PIL import Image

from pipelines.download.fetching import as_fetched
from tests.support.image_files import encoded, with_chunk, with_segment


def test_images_are_kept_as_they_came_whatever_their_metadata() -> None:
    picture = Image.new("RGB", (8, 6))
    for data in (
        encoded(picture, "JPEG"),
        with_chunk(encoded(picture, "PNG"), b"zTXt", b"comment\0\0" + zlib.compress(bytes(2 << 20))),
        with_segment(encoded(picture, "JPEG"), 0xED, b"Photoshop 3.0\x008BIM\4\4"),
        encoded(picture, "AVIF"),
    ):
        assert as_fetched(io.BytesIO(data)) == (data, 8, 6, 8, 6, None)


def test_pages_are_not_kept() -> None:
    content, *_, error = as_fetched(io.BytesIO(b"<html>404</html>"))
    assert content is None and error is not None and error.startswith("not_an_image")
