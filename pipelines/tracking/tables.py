"""Logs tables that MLflow's page shows as tables."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient


def log_table(
    client: "MlflowClient", run_id: str, file: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Logs a table to the run and replaces one of the same name. Columns of numbers become numbers, and `-` null."""
    import pandas

    # The page reads a dot in a column's name as a path, and leaves the column empty.
    columns = {name.replace(".", "/"): _as_numbers([row[place] for row in rows]) for place, name in enumerate(header)}
    frame = pandas.DataFrame(columns)
    tables = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    if {"path": file, "type": "table"} not in tables:
        client.log_table(run_id, frame, file)
    # `log_table` appends to an existing table. This replaces it, in the same format.
    client.log_text(run_id, frame.to_json(orient="split", index=False) or "", file)


def _as_numbers(cells: Sequence[str]) -> list[Any]:
    """Converts a column to numbers, and `-` to None, if all cells are numbers. The page then sorts by value."""
    try:
        return [None if cell == "-" else float(cell) for cell in cells]
    except ValueError:
        return list(cells)
