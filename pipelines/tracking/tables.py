"""Tables that MLflow's page shows as such."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient


def log_table(
    client: "MlflowClient", run_id: str, file: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """A table of the run, in place of the one of that name. Columns of numbers are logged as numbers, `-` as none."""
    import pandas

    # A column with a dot in its name stays empty on the page, which takes it for a path.
    columns = {name.replace(".", "/"): _as_numbers([row[place] for row in rows]) for place, name in enumerate(header)}
    frame = pandas.DataFrame(columns)
    tables = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    if {"path": file, "type": "table"} not in tables:
        client.log_table(run_id, frame, file)
    # `log_table` appends to what is there; what it writes is this.
    client.log_text(run_id, frame.to_json(orient="split", index=False) or "", file)


def _as_numbers(cells: Sequence[str]) -> list[Any]:
    """A column as numbers, None for `-`, if they are numbers: the page then sorts them as such."""
    try:
        return [None if cell == "-" else float(cell) for cell in cells]
    except ValueError:
        return list(cells)
