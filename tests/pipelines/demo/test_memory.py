"""Memory of the whole process tree."""

import subprocess
import sys
import time

from pipelines.demo.memory import PeakMemory, resident_mb


def test_memory_of_a_child_process_counts() -> None:
    before = resident_mb()
    code = "import time; block = bytearray(300_000_000); time.sleep(200)"
    with PeakMemory(every_seconds=0.1) as memory:
        child = subprocess.Popen([sys.executable, "-c", code])
        try:
            deadline = time.monotonic() + 100
            while memory.peak_mb < before + 250 and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            child.kill()
            child.wait()
    assert before + 250 < memory.peak_mb < before + 600
