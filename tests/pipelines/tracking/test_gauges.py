from urllib.parse import unquote

import pytest

from pipelines.tracking.gauges import EvaluationGauges, StepGauges, ascii_name


@pytest.mark.parametrize("name", ["debug", "a b%", "näme", "実験 1"])
def test_any_name_of_a_run_can_be_a_tag(name: str) -> None:
    StepGauges(name).set(1, {"loss": 2.0}, global_batch_size=4)  # Ray itself refuses what is not ASCII
    EvaluationGauges(name).set(1, miou=1.0, best_miou=1.0)
    assert ascii_name(name) == name if name.isascii() else unquote(ascii_name(name)) == name
