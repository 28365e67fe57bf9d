"""What is said of a checkpoint that is none."""

from pathlib import Path

import pytest

from pipelines.runs.checkpoints import local_checkpoint


def test_weights_of_others_have_to_be_imported_first(tmp_path: Path) -> None:
    (tmp_path / "group_vit.pth").write_bytes(b"PK")
    (tmp_path / "hugging_face").mkdir()
    (tmp_path / "hugging_face" / "config.json").write_text("{}")
    for name in ("group_vit.pth", "hugging_face"):
        with (
            pytest.raises(
                ValueError, match=f"it has no state.json; groupvit import-weights .*{name} --out DIR makes a"
            ),
            local_checkpoint(str(tmp_path / name)),
        ):
            pass
    with pytest.raises(ValueError, match=r"it has no state\.json$"), local_checkpoint(str(tmp_path)):
        pass
