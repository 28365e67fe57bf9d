"""A slow connection: passes TCP on to a port of this machine, in a process of its own.

python -m tests.support.throttled_proxy PORT BYTES_PER_SECOND
"""

import asyncio
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK = 2**16


class ThrottledProxy:
    """Listens at `url`. What clients send, all connections together, goes on at `bytes_per_second`."""

    def __init__(self, port: int, bytes_per_second: float) -> None:
        self._command = [sys.executable, "-m", "tests.support.throttled_proxy", str(port), str(bytes_per_second)]
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(self._command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()


class _Limit:
    """Lets bytes pass at a rate."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate, self._free_at = bytes_per_second, 0.0

    async def wait(self, num_bytes: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + num_bytes / self._rate
        await asyncio.sleep(self._free_at - now)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: _Limit | None) -> None:
    try:
        while chunk := await reader.read(_CHUNK):
            if limit is not None:
                await limit.wait(len(chunk))
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        return  # one side has gone, as clients may
    finally:
        writer.close()


async def _serve(port: int, bytes_per_second: float) -> None:
    limit = _Limit(bytes_per_second)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass_on(reader, to_server[1], limit), _pass_on(to_server[0], writer, None))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=_CHUNK)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
