"""The server by HTTP, as the command starts it: what it answers, and what it refuses."""

import base64
import http.client
import io
import json
import os
import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from groupvit.checkpoint import load, load_state
from groupvit.decode import decode_upright
from groupvit.protocols import protocol_of
from groupvit.segmenter import Segmenter
from groupvit.tokenizer import Tokenizer
from groupvit.visualize import pixel_groups
from tests.support.image_files import encoded
from tests.support.pages import ROOT, lines_of
from tests.support.running_app import COMMAND, blocks, gone, portrait, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def png(image: Image.Image) -> bytes:
    return encoded(image, "PNG")


def picture(data_url: str) -> Image.Image:
    assert data_url.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2])))


def ask(address: str, image: bytes | None = None, /, **fields: str) -> httpx.Response:
    files = {"image": ("picture.png", image)} if image is not None else {"other": ("", b"")}
    return httpx.post(f"{address}api/segment", files=files, data={"words": "dog, grass", **fields}, timeout=120)


def test_an_answer_is_what_the_segmenter_finds(address: str, checkpoint: Path) -> None:
    image = portrait()  # at the size of the page, so that nothing is resized
    response = ask(address, png(image), words="dog, boat")
    assert response.status_code == 200, response.text
    given = response.json()
    model = load(checkpoint)
    segmenter = Segmenter(model, protocol_of("model", model, load_state(checkpoint)), Tokenizer())
    found = segmenter.segment(np.asarray(image), ["dog", "boat"])
    assert (given["width"], given["height"]) == (512, 1024)
    assert tuple(given["names"]) == found.names == ("background", "dog", "boat") and given["has_background"]
    labels = picture(given["labels"])
    assert labels.mode == "P" and (np.asarray(labels) == found.labels).mean() > 0.999
    assert len(np.unique(found.labels)) > 1, "else this shows little"
    assert given["shares"] == pytest.approx(found.shares, abs=1e-3)
    assert np.asarray(labels.convert("RGB"))[0, 0].tolist() == given["colours"][np.asarray(labels)[0, 0]]

    assert [len(stage["colours"]) for stage in given["groups"]] == [8, 4]
    ranks = np.asarray(picture(given["groups"][1]["map"]))
    sizes = np.bincount(ranks.ravel(), minlength=4)
    assert sorted(sizes, reverse=True) == sizes.tolist()
    assert given["group_shares"] == pytest.approx(sizes / ranks.size, abs=1e-4)
    owners = pixel_groups(found.group_maps[-1], 1024, 512)
    for rank, row in enumerate(given["affinities"]):
        if sizes[rank]:
            group = np.bincount(owners[ranks == rank], minlength=4).argmax()
            assert row == pytest.approx(found.affinities[group], abs=1e-3)


def test_the_documented_lines_of_curl(address: str, checkpoint: Path, tmp_path: Path) -> None:
    lines = [line for line in lines_of(ROOT / "docs/use.md") if line.startswith("curl ")]
    assert len(lines) == 2
    image = portrait()
    image.save(tmp_path / "photo.jpg", quality=95)
    answers = []
    for line in lines:
        words = shlex.split(line.replace("http://127.0.0.1:8000/", address))
        answers.append(subprocess.run([*words, "--fail", "--silent"], cwd=tmp_path, capture_output=True, check=True))
    assert json.loads(answers[1].stdout)["openapi"] == "3.1.0"
    model = load(checkpoint)
    segmenter = Segmenter(model, protocol_of("model", model, load_state(checkpoint)), Tokenizer())
    found = segmenter.segment(decode_upright((tmp_path / "photo.jpg").read_bytes()), ["bird", "tree", "car"])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png")), found.labels)


def test_small_images_get_maps_of_the_pages_size(address: str) -> None:
    given = ask(address, png(blocks(48, 96)), background="0").json()
    assert (given["width"], given["height"]) == (1024, 512)
    assert given["names"] == ["dog", "grass"] and not given["has_background"]


def test_an_example_can_be_asked_about_by_number(address: str) -> None:
    given = ask(address, example="1", threshold="0.5").json()
    assert (given["width"], given["height"]) == (512, 1024)
    for number in ("2", "-1", "../1", "1e9", "٣"):
        response = ask(address, example=number)
        assert response.status_code == 400 and "does not exist" in response.json()["error"]


def test_many_words_get_smaller_maps(address: str) -> None:
    given = ask(address, png(blocks(512, 512)), words=",".join(f"word {index}" for index in range(254))).json()
    assert given["width"] < 600 and len(given["names"]) == 255


WORDS_REFUSED: list[tuple[dict[str, str], str]] = [
    ({"words": ""}, "classes is empty"),
    ({"words": " , "}, "classes is empty"),
    ({"words": "dog, Dog"}, "give each word once"),
    ({"words": "background"}, "what suits no other word"),
    ({"words": "word " * 500}, "has 500 tokens, and 13 fit"),
    ({"words": ",".join(str(number) for number in range(255))}, "give at most 254"),
    ({"threshold": "2"}, "from 0 to 1"),
    ({"threshold": "nan"}, "from 0 to 1"),
    ({"threshold": "much"}, "is not a number"),
    ({"background": "yes"}, "give 1 or 0"),
]


@pytest.mark.parametrize(("fields", "message"), WORDS_REFUSED)
def test_words_and_settings_that_are_refused(address: str, fields: dict[str, str], message: str) -> None:
    assert_refused(ask(address, png(blocks()), **fields), 400, message)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image at all", "not a whole JPEG, PNG, WebP, GIF or BMP"),
        (png(blocks())[:300], "cannot be decoded"),
        (png(Image.new("RGB", (1, 300))), "each side must have at least 16"),
        (png(Image.new("RGB", (300, 1))), "each side must have at least 16"),
        (png(Image.new("RGB", (1000, 20))), "crop it to at most 20:1"),
        (png(Image.new("1", (20_000, 20_000))), "more pixels than"),
        (png(Image.new("1", (9_000, 9_000))), "9000×9000 pixels"),
        (b"", "image is missing"),
    ],
)
def test_images_that_are_refused(address: str, image: bytes, message: str) -> None:
    assert_refused(ask(address, image), 400, message)


def assert_refused(response: httpx.Response, status: int, message: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    given: dict[str, Any] = response.json()
    assert list(given) == ["error"] and message in given["error"] and "\n" not in given["error"]


def test_uploads_are_bounded(address: str) -> None:
    assert_refused(ask(address, os.urandom(2_100_000)), 413, "more than 2 MB")
    assert_refused(ask(address, os.urandom(2_500_000)), 413, "more than 2 MB")
    chunked = httpx.post(
        f"{address}api/segment",
        content=iter([b"x" * 1000] * 10),
        headers={"content-type": "multipart/form-data; boundary=b"},
        timeout=60,
    )
    assert_refused(chunked, 411, "Content-Length")


def test_a_lie_about_the_length_does_not_help(address: str) -> None:
    """What is said to be short is not read further; the server goes on serving."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.putrequest("POST", "/api/segment")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"x" * 100_000)
    assert connection.getresponse().status == 400
    connection.close()
    assert httpx.get(address).status_code == 200


def test_forms_that_are_none(address: str) -> None:
    url = f"{address}api/segment"
    assert_refused(httpx.post(url, json={"words": "dog"}, timeout=60), 415, "multipart/form-data")
    broken = httpx.post(url, content=b"--b\r\n", headers={"content-type": "multipart/form-data"}, timeout=60)
    assert_refused(broken, 400, "the form cannot be read")
    many = httpx.post(url, files=[("image", ("a", b"1")), ("image", ("b", b"2"))], timeout=60)
    assert_refused(many, 400, "the form cannot be read")


def test_with_too_many_at_once_some_are_told_to_come_back(address: str) -> None:
    image = png(blocks(512, 512))
    words = ",".join(f"word {index}" for index in range(200))
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(ask, address, image, words=words) for _ in range(16)]
        time.sleep(0.2)
        started = time.monotonic()
        assert httpx.get(address, timeout=30).status_code == 200, "the page stays there meanwhile"
        page_seconds = time.monotonic() - started
        responses = [one.result() for one in waiting]
        last = time.monotonic() - started
    assert page_seconds < last
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 4
    for response in responses:
        if response.status_code == 503:
            assert response.headers["retry-after"] == "5" and "try again" in response.json()["error"]
    assert ask(address, image).status_code == 200


def test_pages_of_other_names_and_places_get_nothing(address: str) -> None:
    """DNS rebinding, and forms on other sites."""
    for path in ("", "api/model", "api/examples/0"):
        response = httpx.get(address + path, headers={"host": "evil.example"})
        assert response.status_code == 400 and "GroupViT" not in response.text
    assert httpx.get(address, headers={"host": "localhost:1"}).status_code == 200
    response = httpx.post(f"{address}api/segment", headers={"sec-fetch-site": "cross-site"}, files={"a": b""})
    assert_refused(response, 403, "elsewhere")
    response = httpx.get(f"{address}api/model", headers={"origin": "http://evil.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_model_and_the_examples_are_described(address: str) -> None:
    given = httpx.get(f"{address}api/model").json()
    assert given["stages"] == [8, 4] and given["threshold"] == 0.12 and given["background"] is True
    assert given["license"] == "CC BY 4.0 <of the tests>" and given["max_upload_megabytes"] == 2
    assert given["checkpoint"].endswith("/small") and not given["checkpoint"].startswith("/")
    assert given["examples"] == ["<b>first", "second"]
    first = httpx.get(f"{address}api/examples/0")
    assert first.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(first.content)).size == (128, 96)
    for path in ("api/examples/2", "api/examples/..%2f..%2fetc%2fpasswd", "server.py", "../config.py", "docs"):
        assert httpx.get(address + path).status_code == 404


def test_every_response_says_what_a_browser_may_do_with_it(address: str) -> None:
    for path in ("", "page.js", "page.css", "icon.svg", "api/model", "api/examples/0", "nothing"):
        headers = httpx.get(address + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]


def test_ctrl_c_ends_all_of_it_quietly(checkpoint: Path) -> None:
    with running("--checkpoint", str(checkpoint)) as (url, process):
        port = urlsplit(url).port
        taken = subprocess.run(
            [*COMMAND, "--checkpoint", str(checkpoint), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert taken.returncode == 2 and taken.stderr.count("\n") == 1
        assert f"port={port} at 127.0.0.1 is in use" in taken.stderr
        everything = psutil.Process(process.pid).children(recursive=True)
        assert len(everything) > 3
        process.send_signal(2)
        output, messages = process.communicate(timeout=60)
        assert process.returncode == 0
        assert output == "" and messages.splitlines()[-1] == "groupvit app: stopped"
        assert "Traceback" not in messages and "INFO" not in messages
        assert gone(everything, 20) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--checkpoint /nowhere", "/nowhere is neither a checkpoint nor a run"),
        ("--checkpoint CHECKPOINT --examples /nowhere", "examples=/nowhere holds no image"),
        ("--checkpoint CHECKPOINT --port 99999", "port=99999 is not a port"),
        ("--checkpoint CHECKPOINT --host 203.0.113.7", "host=203.0.113.7 is not an address of this machine"),
        ("--checkpoint CHECKPOINT --host no.such.invalid", "host=no.such.invalid is not an address or name"),
        ("--checkpoint CHECKPOINT --num-replicas 0", "num_replicas=0 is too small"),
        ("--checkpoint DAMAGED", "model.safetensors is corrupted"),
    ],
)
def test_what_cannot_be_started_is_said_in_one_line(flags: str, message: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text((checkpoint / "state.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    given = flags.replace("CHECKPOINT", str(checkpoint)).replace("DAMAGED", str(tmp_path)).split()
    done = subprocess.run([*COMMAND, *given], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_host_for_everybody_is_warned_of(checkpoint: Path) -> None:
    with running("--checkpoint", str(checkpoint), "--host", "0.0.0.0", "--num-replicas", "2") as (url, process):
        port = urlsplit(url).port
        answered = httpx.get(f"http://127.0.0.1:{port}/api/model", headers={"host": "machine.example"})
        assert answered.status_code == 200 and json.loads(answered.text)["stages"] == [8, 4]
        assert ask(f"http://127.0.0.1:{port}/", png(blocks())).status_code == 200
        process.send_signal(15)
        _, messages = process.communicate(timeout=60)
        assert "warning: host=0.0.0.0 lets everybody in" in messages.splitlines()[0]
