"""A real S3 server (SeaweedFS) on this machine, for tests."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_KEYS = {"accessKey": "test-key", "secretKey": "test-secret"}


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server that keeps its objects in `folder`; yields the environment variables by which clients find it."""
    ports = _free_ports(5)
    config = folder / "s3.json"
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    config.write_text(json.dumps({"identities": [{"name": "test", "credentials": [_KEYS], "actions": actions}]}))
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",  # its default is every interface
        **dict(zip(["master.port", "volume.port", "filer.port", "s3.port", "admin.port"], ports, strict=True)),
        "s3.config": config,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
    }
    command = [Path(sys.executable).with_name("weed"), "-logtostderr=true", "mini"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *(f"-{name}={value}" for name, value in options.items())], stdout=log, stderr=log
        )
    endpoint = f"http://127.0.0.1:{ports[3]}"
    try:
        _wait_until_ready(server, endpoint, folder / "log")
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": _KEYS["accessKey"],
            "AWS_SECRET_ACCESS_KEY": _KEYS["secretKey"],
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_ports(count: int) -> list[int]:
    """Ports that are free, as are those 10,000 above them, where the server speaks gRPC."""
    ports: list[int] = []
    candidates = iter(range(20000 + 7 * (time.time_ns() % 2000), 55000, 7))
    while len(ports) < count:
        port = next(candidates)
        with socket.socket() as plain, socket.socket() as grpc, contextlib.suppress(OSError):
            plain.bind(("127.0.0.1", port))
            grpc.bind(("127.0.0.1", port + 10000))
            ports.append(port)
    return ports


def _wait_until_ready(server: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(endpoint, timeout=5)
        except urllib.error.HTTPError:
            return  # it refuses a request without credentials: it is up
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the S3 server did not start:\n{log.read_text()[-2000:]}")
