"""What runs on the cluster for `groupvit submit`: the environment that came along, the machines, then the command.

    python -m pipelines.submitted [--machines JSON] COMMAND ...

The environment lies in a file of the package, not in Ray's `env_vars`: those, Ray writes to its logs.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENT_FILE = "job-environment.json"
MACHINES_FLAG = "--machines"


def load_environment() -> None:
    """Take over the environment; Ray calls this in every process of the job, in the package's folder."""
    file = Path(ENVIRONMENT_FILE)
    if file.exists():  # not in a job without any
        os.environ.update(json.loads(file.read_text(encoding="utf-8")))


def wait_for_machines(bundles: Sequence[dict[str, float]], minutes: float) -> None:
    """Have the autoscaler bring machines with room for the bundles, and wait until they are there. ValueError if they
    do not come in time."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    print(f"waiting for machines with room for {len(bundles)} processes", flush=True)
    begin = time.monotonic()
    ray.init(log_to_driver=False)
    group = placement_group(list(bundles), strategy="PACK")
    try:
        if not group.wait(timeout_seconds=minutes * 60):
            raise ValueError(
                f"the machines did not come within wait_minutes={minutes:g}: see `ray status` on the head; the same "
                "command may be submitted again"
            )
    finally:
        # Idle machines are kept for some minutes; the command takes them within seconds.
        remove_placement_group(group)
    print(f"machines are there after {time.monotonic() - begin:.0f} s", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run one command as `groupvit` does; returns its exit code."""
    load_environment()
    if arguments[0] == MACHINES_FLAG:
        wanted = json.loads(arguments[1])
        arguments = arguments[2:]
        try:
            wait_for_machines(wanted["bundles"], wanted["minutes"])
        except ValueError as error:
            print(f"groupvit: error: {error}", file=sys.stderr)
            return 1
    from pipelines.cli import main as groupvit

    return groupvit(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
