"""Downloads and unpacks Debian packages with apt's own tools, without root and without installing anything."""

import shutil
import subprocess
import tempfile
from pathlib import Path

APT_TIMEOUT_SECONDS = 900


class PackagesUnavailable(ValueError):  # noqa: N818 - it is a state of the world, not a mistake
    """The packages are not available on this machine."""


def unpack_packages(names: list[str], cache: Path) -> dict[str, Path]:
    """Returns folders with the packages' files, by package name. Each package is downloaded once and then kept in
    `cache`.

    Raises PackagesUnavailable, in one line, if apt is missing or a package cannot be downloaded.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    folders = {name: cache / "packages" / name for name in names}
    to_fetch = [name for name, folder in folders.items() if not folder.is_dir()]
    if to_fetch and missing:
        raise PackagesUnavailable(
            f"{' and '.join(missing)} not found, needed to download {', '.join(to_fetch)}: "
            "use a Debian or Ubuntu machine for stamps, or `groupvit demo-data shapes`, which downloads nothing"
        )
    for name in to_fetch:
        _fetch(name, folders[name])
    return folders


def _fetch(name: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
        work = Path(temporary)
        (work / "deb").mkdir()
        print(f"downloading Debian package {name} …", flush=True)
        failure = _download(name, work / "deb", options=[])
        if failure is not None:
            # The machine's package lists may be empty (fresh containers). Fetch private ones, which needs no root.
            options = _private_lists(work / "apt")
            failure = _run(["apt-get", *options, "update"], work) or _download(name, work / "deb", options)
        if failure is not None:
            raise PackagesUnavailable(
                f"apt-get download {name} failed ({failure}): check the network and that the distribution's sources "
                "offer it, or use `groupvit demo-data shapes`, which downloads nothing"
            )
        archive = next((work / "deb").glob("*.deb"))
        unpacking = _run(["dpkg-deb", "-x", str(archive), str(work / "files")], work)
        if unpacking is not None:
            raise PackagesUnavailable(f"dpkg-deb -x {archive.name} failed ({unpacking}): free disk space and try again")
        try:
            (work / "files").rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its files are the same
                raise


def _download(name: str, folder: Path, options: list[str]) -> str | None:
    return _run(["apt-get", *options, "download", name], folder)


def _private_lists(folder: Path) -> list[str]:
    """Returns apt options that keep package lists, cache and sandbox user separate from the system's."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    return [
        "-o", f"Dir::State={folder / 'state'}",
        "-o", f"Dir::Cache={folder / 'cache'}",
        "-o", "Dir::State::status=/var/lib/dpkg/status",
        "-o", "APT::Sandbox::User=",
    ]  # fmt: skip


def _run(command: list[str], folder: Path) -> str | None:
    """Runs a command. Returns None if it succeeded, else the last line of its error output."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=APT_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer within {APT_TIMEOUT_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
