"""New amendments, which the next start of a run asks for, and their record in the run's folder."""

import getpass
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.experiments.amendments import Amendment
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.contents import RecordedAmendment
from pipelines.runs.folder import RunFolder


def new_amendments(config: ExperimentConfig, run: RunFolder, recorded: Sequence[RecordedAmendment]) -> list[Any]:
    """Returns the entries of those of `config.amendments` that are not recorded.

    Raises ValueError for one that begins before the newest checkpoint, which it could change no more.
    """
    done = run.latest_step()
    known = {each["text"] for each in recorded}
    entries = []
    for amendment in dict.fromkeys(Amendment.parse(text) for text in config.amendments):
        if str(amendment) in known:
            continue
        if amendment.first < done:
            raise ValueError(
                f"--amend {str(amendment)!r} begins before the newest checkpoint of run {config.run_name!r}, which is "
                f"of step {done}: give {done} or a later step"
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"text": str(amendment), "from_step": amendment.first}
        entries.append(entry | {"by": _user(), "at": now, "after_step": done})
    return entries


def record(run: RunFolder, entries: Sequence[Any]) -> None:
    """Adds new amendments to run.json. To be called while no other driver trains the run.

    Raises ValueError if the run has got beyond one of them.
    """
    description = run.read_description()
    if not entries or description is None:
        return
    done = run.latest_step()
    for each in entries:
        if each["from_step"] < done:  # workers of a killed driver live on for a moment
            raise ValueError(f"--amend {each['text']!r}: {run.uri} has got to step {done} meanwhile: give a later step")
    run.write_description(description | {"amendments": [*description.get("amendments", []), *entries]})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
