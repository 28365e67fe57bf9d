"""Several machines on this one: each has its own address, processes, /tmp, /dev/shm and home, and lets in by ssh.

They are namespaces without names (network, mounts, process ids) that end with the process that holds them, which ends
with this one: nothing is left behind, also after kill -9, and several such networks do not meet. Files outside the
places above are this machine's own, so its environment of Python is theirs.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

HOME = "/home/ray"
"""The home of root on every machine, as in Ray's images."""
_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "ssh", "sshd", "ssh-keygen", "rsync")
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

_STARTER = ThreadPoolExecutor(1, thread_name_prefix="machines")
"""A process that is to end with this one ends, in truth, with the *thread* that started it. This one stays."""

# What unshare leaves as it is, made the machine's own: $1 its folder, the others what has to stay where it is.
_BOOT = """
set -euo pipefail
folder=$1; shift
mount --bind "$folder" /mnt
mkdir -p /mnt/tmp /mnt/home/ray
for kept in "$@"; do
  case $kept in /tmp/*|/home/*) mkdir -p "/mnt$kept"; mount --bind "$kept" "/mnt$kept";; esac
done
mount --rbind /mnt/home /home
mount --rbind /mnt/tmp /tmp
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mkdir /run/sshd
sed 's|^root:.*|root:x:0:0:root:/home/ray:/bin/bash|' /etc/passwd > /mnt/passwd
mount --bind /mnt/passwd /etc/passwd
ip link set lo up
touch /mnt/booted
while :; do sleep infinity & wait $!; done  # and reap, as a first process has to
"""


def missing_for_machines() -> str | None:
    """Why there can be no machines here, in words; None if there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if missing := [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]:
        return f"needs {', '.join(missing)} (Debian: iproute2, util-linux, openssh-client, openssh-server, rsync)"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else f"may make no namespaces: {tried.stderr.decode().strip()}"


class Machine:
    """One machine. `run` does something on it; `plug` and `unplug` move its network cable."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        folder.mkdir(parents=True)
        kept = {str(Path.cwd()), sys.prefix, sys.base_prefix, str(Path(sys.prefix).resolve())}
        command = ["unshare", "--net", "--mount", "--pid", "--fork"]
        command += ["--kill-child", "--mount-proc", "bash", "-c", _BOOT, "boot", str(folder), *sorted(kept)]
        with (folder / "boot.log").open("wb") as log:
            self._holder = _start(command, stdout=log, stderr=log, env=_environment(), start_new_session=True)
        deadline = time.monotonic() + 60
        while not (folder / "booted").exists():
            log_text = (folder / "boot.log").read_text()
            assert self._holder.poll() is None and time.monotonic() < deadline, f"{name} did not boot: {log_text}"
            time.sleep(0.05)
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.init = int(children[0])
        """Process id, seen from outside, of the machine's first process."""

    @property
    def home(self) -> Path:
        """Its home, seen from outside."""
        return self.folder / HOME.lstrip("/")

    def start(
        self, *command: str, log: Path | None = None, cwd: str = HOME, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """A process on the machine, with its output in `log`, else in a pipe."""
        inside = ["nsenter", "-t", str(self.init), "--net", "--mount", "--pid", f"--wdns={cwd}", "--", *command]
        output: int | IO[bytes] = subprocess.PIPE if log is None else log.open("ab")
        return _start(
            inside,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment() | {"HOME": HOME} | dict(variables or {}),
        )

    def run(
        self, *command: str, cwd: str = HOME, timeout: float = 240, variables: Mapping[str, str] | None = None
    ) -> str:
        """What a command prints. AssertionError, with that, if it fails."""
        process = self.start(*command, cwd=cwd, variables=variables)
        try:
            output = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{self.name}: {shlex.join(command)} hangs:\n{process.communicate()[0]}") from None
        assert process.returncode == 0, f"{self.name}: {shlex.join(command)} failed:\n{output}"
        return output

    def processes(self) -> list[str]:
        """Command lines of what runs on the machine, its first process and what waits to be reaped left out."""
        output = self.run("ps", "-e", "-o", "pid=,stat=,args=")
        lines = [line.split(None, 2) for line in output.splitlines()]
        own = {"ps -e -o pid=,stat=,args=", "sleep infinity"}
        return [words[2] for words in lines if words[0] != "1" and "Z" not in words[1] and words[2] not in own]

    def unplug(self) -> None:
        """Nothing gets in or out any more; nobody is told."""
        self.run("ip", "link", "set", "eth0", "down")

    def plug(self, gateway: str) -> None:
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "replace", "default", "via", gateway)

    def serve_ssh(self, key: Path) -> None:
        """Let in who has `key`."""
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key"], check=True)
        shutil.copy(f"{key}.pub", self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(
            "HostKey /mnt/host_key\nAuthorizedKeysFile /mnt/authorized_keys\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 100\nMaxSessions 100\n"
        )
        sshd = shutil.which("sshd", path=_PATH)
        assert sshd is not None
        self.start(sshd, "-D", "-e", "-f", "/mnt/sshd_config", log=self.folder / "sshd.log")

    def end(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Network:
    """Machines that reach one another, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.machines: list[Machine] = []
        self.gateway = "10.77.0.254"

    def __enter__(self) -> "Network":
        self._switch = Machine("switch", self.gateway, self._folder / "switch")
        self._switch.run("ip", "link", "add", "bridge", "type", "bridge")
        self._switch.run("ip", "address", "add", f"{self.gateway}/24", "dev", "bridge")
        self._switch.run("ip", "link", "set", "bridge", "up")
        return self

    def add(self, name: str) -> Machine:
        """A new machine with an address of its own."""
        number = len(self.machines) + 1
        machine = Machine(name, f"10.77.0.{number}", self._folder / name)
        self.machines.append(machine)
        port = f"port{number}"
        cable = ["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(machine.init)]
        # In the switch's network, but among this machine's processes: by its id there the switch knows no other.
        subprocess.run(["nsenter", "-t", str(self._switch.init), "--net", *cable], check=True, env=_environment())
        self._switch.run("ip", "link", "set", port, "master", "bridge", "up")
        machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
        machine.plug(self.gateway)
        return machine

    def __exit__(self, *_: object) -> None:
        for machine in [*self.machines, self._switch]:
            machine.end()


def _start(command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
    """Starts a process that ends with this one. The options are those of Popen."""
    return _STARTER.submit(subprocess.Popen, ["setpriv", "--pdeathsig", "KILL", "--", *command], **options).result()


def _environment() -> dict[str, str]:
    """This process's, without what it may have been told of Ray, object stores and MLflow."""
    told = ("RAY_", "AWS_", "MLFLOW_", "PYTEST_", "COV_")
    return {name: value for name, value in os.environ.items() if not name.startswith(told)} | {"PATH": _PATH}
