"""Entry point of a job of `groupvit submit`: loads its environment, waits for machines, then runs the command.

python -m pipelines.cli.on_cluster [--machines JSON] COMMAND ...
"""

import json
import sys
from collections.abc import Sequence

from pipelines.cli.main import main as groupvit
from pipelines.cluster.package import load_environment
from pipelines.cluster.room import MACHINES_FLAG, wait_for_machines


def main(arguments: Sequence[str]) -> int:
    """Run one command as `groupvit` does, and return its exit code."""
    load_environment()
    if arguments[0] == MACHINES_FLAG:
        wanted = json.loads(arguments[1])
        arguments = arguments[2:]
        try:
            wait_for_machines(wanted["bundles"], wanted["minutes"])
        except ValueError as error:
            print(f"groupvit: error: {error}", file=sys.stderr)
            return 1
    return groupvit(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
