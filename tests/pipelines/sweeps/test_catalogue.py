"""Spaces, and what a sweep refuses before anything starts."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupvit.config import SegmentationConfig
from groupvit.image_encoder import ImageEncoder
from pipelines.cli.main import main
from pipelines.cli.requests import sweep_request
from pipelines.experiments import catalogue as experiments
from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.sweeps.catalogue import SPACES, paper_table_1, paper_table_2, paper_table_3
from pipelines.sweeps.plan import plan_sweep
from pipelines.sweeps.space import Choice, Range, Space, with_values
from tests.support.dataset_folder import make_dataset
from tests.support.scenes_folder import write_scenes

FLAGS = ("--data", "train", "--evaluation.root", "scenes", "--tracking.uri", "None")


def with_data(base: ExperimentConfig) -> ExperimentConfig:
    return dataclasses.replace(base, data=dataclasses.replace(base.data, sources=("train",)))


@pytest.mark.parametrize(("space", "base"), list(itertools.product(SPACES, ("debug", "demo", "gcc_yfcc_30e"))))
def test_every_point_of_every_space_is_a_valid_experiment_of_every_base(space: str, base: str) -> None:
    found = SPACES[space](with_data(experiments.EXPERIMENTS[base]()))
    points = list(found.grid()) if found.is_grid else [found.draw(np.random.default_rng(seed)) for seed in range(50)]
    for point in points:
        config = with_values(found.base, found.values(point))
        validate(config)
        assert sum(config.model.image.depths) == sum(found.base.model.image.depths), "models of one size"


def values(space: Space, name: str) -> list[Any]:
    return [space.values(point).get(name) for point in space.grid()]


def test_the_papers_tables_at_the_papers_size() -> None:
    paper = with_data(experiments.gcc_yfcc_30e())
    table = paper_table_1(paper)
    assert table.num_seeds == 3
    rows = [(v["loss.num_prompts"], v["model.image.assignment"]) for v in map(table.values, table.grid())]
    assert rows == [(0, "soft"), (0, "hard"), (3, "soft"), (3, "hard")]
    assert set(values(table, "model.image.depths")) == {(6, 6)}
    assert set(values(table, "model.image.num_group_tokens")) == {(64, 0)}

    table = paper_table_2(paper)
    pairs = zip(
        values(table, "model.image.num_group_tokens"), values(table, "model.image.num_output_groups"), strict=True
    )
    assert list(pairs) == [((16, 0), (4,)), ((16, 0), (8,)), ((32, 0), (8,)), ((64, 0), (8,)), ((64, 0), (16,))]

    table = paper_table_3(paper)
    assert values(table, "model.image.depths") == [(6, 6), (6, 3, 3)]
    assert values(table, "model.image.num_output_groups") == [(8,), (64, 8)]


def test_the_papers_tables_on_the_demo_leave_the_rest_of_it_alone() -> None:
    demo = with_data(experiments.demo())
    for point in paper_table_1(demo).grid():
        varied = with_values(demo, paper_table_1(demo).values(point))
        image = dataclasses.replace(varied.model.image, assignment=demo.model.image.assignment)
        assert image == demo.model.image
        # Without the multi-label loss its scale is as it was initialised: masks must not be scored by it.
        scale: Any = "multi_label" if varied.loss.num_prompts else "image_text"
        assert varied.segmentation == dataclasses.replace(demo.segmentation, logit_scale=scale)
    assert {v["loss.num_prompts"] for v in map(paper_table_1(demo).values, paper_table_1(demo).grid())} == {0, 5}
    for table in (paper_table_2(demo), paper_table_3(demo)):
        for point in table.grid():
            ImageEncoder(with_values(demo, table.values(point)).model.image)
    assert values(paper_table_3(demo), "model.image.depths") == [(4, 0), (2, 2, 0)]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((), "space mine is empty"),
        ((Choice.of("loss.num_prompts"),), "space mine is empty: axis loss.num_prompts has no option"),
        ((Choice.of("loss.num_promts", 1),), "unknown parameter loss.num_promts: did you mean loss.num_prompts?"),
        ((Choice.of("training.seed", 1),), "training.seed cannot be searched: the sweep itself sets it"),
        (
            (Choice.of("training.num_workers", 1, 2),),
            "training.num_workers cannot be searched: the sweep itself sets it",
        ),
        ((Choice.of("loss.num_prompts", 1),) * 2, "loss.num_prompts cannot be searched: two axes set it"),
        (
            (Range(name="loss.multi_label_weight", low=0.0, high=1.0, log=True),),
            "loss.multi_label_weight from 0.0 to 1.0: give 0 < low < high",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(axes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        Space(name="mine", base=experiments.debug(), axes=axes)
    assert "\n" not in str(caught.value)


def test_values_that_do_not_go_together_are_refused_in_a_grid_and_left_out_of_draws() -> None:
    config, space = sweep_request(["debug", "--base", "debug", *FLAGS])
    axes = (
        Choice.of("model.image.num_heads", (2, 2, 2), (5, 5, 5)),
        Range(name="optimizer.learning_rate", low=1e-4, high=1e-2, log=True),
    )
    grid = dataclasses.replace(space, axes=axes[:1])
    with pytest.raises(ValueError, match=r"image.num_heads=.* 5 does not divide image.width=32"):
        plan_sweep(config, grid)
    drawn = dataclasses.replace(space, axes=axes)
    sweep = plan_sweep(dataclasses.replace(config, searcher="random", budget="9"), drawn)
    specs = list(itertools.islice(sweep.draws(), 9))
    assert {spec.values["model.image.num_heads"] for spec in specs} == {(2, 2, 2)}
    assert specs == list(itertools.islice(sweep.draws(), 9)), "the same at every start"
    assert len({spec.name for spec in specs}) == 9


def test_steps_rungs_and_seeds() -> None:
    config, space = sweep_request(["paper_table_1", *FLAGS])
    assert (space.base.training.num_steps, space.base.optimizer.warmup_steps) == (600, 30)
    assert space.base.evaluation.every_n_steps == 150
    sweep = plan_sweep(config, space)
    specs = sweep.grid()
    assert len(specs) == 12 and [spec.seed for spec in specs] == [0] * 4 + [1] * 4 + [2] * 4
    one = sweep.experiment(specs[5])
    assert (one.training.seed, one.data.seed, one.run_name) == (1, 1, specs[5].name)
    assert one.training.runs_folder == sweep.uri == str(Path("runs/sweep-paper_table_1").resolve())
    _, space = sweep_request(["paper_table_1", *FLAGS, "--training.num-steps", "900", "--num-seeds", "1"])
    assert space.base.training.num_steps == 900
    assert isinstance(space.base.segmentation, SegmentationConfig)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["debgu"], "unknown space debgu: did you mean debug?"),
        (["debug", "--base", "demmo"], "unknown base experiment demmo: did you mean demo?"),
        (["debug", "--schedular", "asha"], "unknown flag --schedular: did you mean --scheduler?"),
        (["debug", "--loss.num-promts", "3"], "unknown flag --loss.num-promts: did you mean --loss.num-prompts?"),
        (["debug", "--scheduler", "ahsa"], "invalid choice 'ahsa' for argument '--scheduler'. Expected one of"),
        (["debug", "--budget", "0"], "budget=0 is below one trial: give at least 1, or hours like 0.5h"),
        (["debug", "--budget", "0h"], "budget=0h is below one trial"),
        (["debug", "--budget", "3 days"], "budget='3 days' is neither trials nor hours: give e.g. 20, or 3h"),
        (["debug", "--max-concurrent", "0"], "max_concurrent=0 is too small: give at least 1"),
        (["grouping"], "budget is missing: searcher=random would never end: give --budget 20, or 3h"),
        (["grouping", "--searcher", "grid"], "searcher=grid cannot walk loss.multi_label_weight of space grouping"),
        (["paper_table_1", "--scheduler", "pbt"], "scheduler=pbt finds nothing in space paper_table_1"),
        (["debug", "--training.run-name", "x"], "training.run_name=x: a sweep names the runs of its trials"),
        (["debug", "--evaluation.root="], "evaluation.root is missing"),
        (["debug", "--training.gpus-per-worker", "1.5"], "training.gpus_per_worker=1.5 cannot be reserved"),
        (["debug", "--training.num-workers", "3"], "training.num_workers=3 is more than the 2 slices"),
    ],
)
def test_mistakes_on_the_command_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = flags
    base = [] if "--base" in rest else ["--base", "debug"]
    assert main(["sweep", name, *base, *FLAGS, *rest]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_is_missing_or_unreachable_is_said_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = make_dataset(tmp_path / "train", 64).uri
    scenes = str(write_scenes(tmp_path / "scenes", 4))
    given = ["sweep", "debug", "--base", "debug", "--training.runs-folder", str(tmp_path / "runs")]
    for flags, message in {
        ("--data", "/nowhere", "--evaluation.root", scenes): "data.sources: /nowhere",
        ("--data", train, "--evaluation.root", "/nowhere"): "evaluation: /nowhere is not a scenes folder",
        (
            *("--data", train, "--evaluation.root", scenes, "--tracking.uri", "http://127.0.0.1:9"),
        ): "tracking_uri=http://127.0.0.1:9: ",
        (
            *("--data", train, "--evaluation.root", scenes, "--tracking.uri", "None", "--training.device", "gpu"),
        ): "and this machine has 0",
    }.items():
        assert main([*given, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_help_lists_the_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in SPACES)
    assert main(["sweep"]) == 2
    assert "a space is missing" in capsys.readouterr().err
