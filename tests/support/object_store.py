"""A real S3 server on this machine, for tests: the one of infra/object_store, on free ports, with keys of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from pyarrow import fs

_SERVE = Path(__file__).parents[2] / "infra" / "object_store" / "serve"
_NUM_PORTS = 5


class ObjectStore:
    """Runs a server that keeps its objects in `folder`; it can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = {
            "OBJECT_STORE_HOME": str(self.folder),
            "OBJECT_STORE_PORT": str(self.port),
            "WEED": str(Path(sys.executable).with_name("weed")),
        }
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen([_SERVE], stdout=log, stderr=log, env={**os.environ, **settings})
        self._wait_until_ready()

    def kill(self) -> None:
        """As when the machine goes down."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which clients find it."""
        lines = (self.folder / "environment").read_text()
        return dict(re.findall(r"^export (\w+)=(.*)$", lines, re.MULTILINE))

    def create_bucket(self, name: str) -> str:
        """The URI of a new bucket."""
        settings = self.environment
        client = fs.S3FileSystem(
            access_key=settings["AWS_ACCESS_KEY_ID"],
            secret_key=settings["AWS_SECRET_ACCESS_KEY"],
            region=settings["AWS_REGION"],
            endpoint_override=settings["AWS_ENDPOINT_URL"],
            allow_bucket_creation=True,
        )
        client.create_dir(name)
        return f"s3://{name}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            if self._server is not None:
                self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _end(self, number: signal.Signals) -> None:
        assert self._server is not None
        self._server.send_signal(number)
        try:
            self._server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _wait_until_ready(self) -> None:
        assert self._server is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}", timeout=5)
            except urllib.error.HTTPError:
                return  # it refuses a request without credentials: it is up
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"the S3 server did not start:\n{(self.folder / 'log').read_text()[-2000:]}")


def _free_port() -> int:
    """The first of some ports that are free, as are those 10,000 above them, where the server speaks gRPC."""
    for port in range(20000 + 7 * (time.time_ns() % 2000), 55000, 7):
        sockets = [socket.socket() for _ in range(2 * _NUM_PORTS)]
        try:
            for offset in range(_NUM_PORTS):
                sockets[offset].bind(("127.0.0.1", port + offset))
                sockets[offset + _NUM_PORTS].bind(("127.0.0.1", port + offset + 10000))
            return port
        except OSError:
            continue
        finally:
            for opened in sockets:
                opened.close()
    raise RuntimeError("no free ports")
