"""Findings of a check: one line each, with a status and, where something is wrong, the fix."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from pipelines.provenance import redact

Status = Literal["OK", "warning", "fault"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check, in one place."""

    check: str
    status: Status
    text: str
    fix: str = ""
    """What to do. Empty if all is well."""
    node: str = ""
    """Machine that it is about. Empty: all of them, or none in particular."""

    @property
    def line(self) -> str:
        """The finding in one line, without credentials."""
        parts = [f"{self.node}: " if self.node else "", self.text, f"; {self.fix}" if self.fix else ""]
        return redact(f"{self.status:7}  {self.check:18}  {''.join(parts)}")


def show(findings: Sequence[Finding]) -> None:
    """Print the findings, in order."""
    for finding in findings:
        print(finding.line, flush=True)


def summary_of(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as `--json` prints them, without credentials."""
    return {
        "faults": sum(finding.status == "fault" for finding in findings),
        "warnings": sum(finding.status == "warning" for finding in findings),
        "findings": [
            {name: redact(value) for name, value in dataclasses.asdict(finding).items()} for finding in findings
        ],
    }


def failure_of(findings: Sequence[Finding]) -> str | None:
    """Return a line that names the checks with faults. None if there are none."""
    faults = [finding.check for finding in findings if finding.status == "fault"]
    if not faults:
        return None
    return f"{len(faults)} fault{'s' if len(faults) > 1 else ''}: {', '.join(dict.fromkeys(faults))}"
