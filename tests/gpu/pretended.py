"""Runs checks on a CUDA device that does not exist: `python -m tests.gpu.pretended DEVICE NAME...`.

DEVICE is the compiled tests/support/pretend_cuda.c. Prints a JSON object per check: its name, and what went wrong.
"""

import ctypes
import json
import sys
import traceback


def main() -> None:
    device, *names = sys.argv[1:]
    ctypes.CDLL(device, ctypes.RTLD_GLOBAL)  # its functions go before CUDA's own, which torch loads
    import torch

    from tests.gpu.checks import CHECKS
    from tests.support.pretend_cuda import REFUSED, pretending

    torch.set_num_threads(1)
    for name in names:
        error = None
        with pretending() as log:
            try:
                CHECKS[name](log)
                refused = log.of(*REFUSED)
                assert not refused, f"a GPU refuses this: {refused}"
            except Exception:
                error = traceback.format_exc()
        print(json.dumps({"name": name, "error": error}), flush=True)


if __name__ == "__main__":
    main()
