"""Whether a run may be continued."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.experiments import debug
from pipelines.job import start_or_continue
from pipelines.run_folder import RunFolder


def test_a_run_of_a_version_without_a_field_had_its_default(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    config = dataclasses.replace(debug(), tracking=dataclasses.replace(debug().tracking, uri=None))
    start_or_continue(run, config, [])
    description = run.read_description()
    assert description is not None
    del description["fixed"]["model.image.tau"]
    run.write_description(description)
    start_or_continue(run, config, [])

    image = dataclasses.replace(config.model.image, tau=2.0)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    with pytest.raises(ValueError, match=r"model.image.tau=2.0, but run 'debug' in runs was started with 1.0"):
        start_or_continue(run, other, [])
