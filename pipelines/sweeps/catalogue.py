"""Named search spaces: functions that return which fields of an experiment vary.

    groupvit sweep paper_table_1 --base demo --evaluation.root data/stamps/validation

Like experiments, they are Python: to define your own space, add a function here and list it in SPACES.
"""

from collections.abc import Mapping
from typing import Any

from pipelines.experiments.config import ExperimentConfig
from pipelines.sweeps.space import Choice, Range, Space

_IMAGE = "model.image"


def debug(base: ExperimentConfig) -> Space:
    """Hard or soft assignment, with two learning rates. Takes seconds on any machine; for `--base debug`."""
    rate = base.optimizer.learning_rate
    axes = (
        Choice.of(f"{_IMAGE}.assignment", "hard", "soft"),
        Choice.of("optimizer.learning_rate", rate, rate / 10),
    )
    return Space(name="debug", base=base, axes=axes)


def grouping(base: ExperimentConfig) -> Space:
    """Everything that shapes the groups: stages with their depths, group tokens and output groups; hard or soft
    assignment; noun prompts per image, their templates and the weight of their loss; tau; learning rate. Has ranges, so
    search it at random or with optuna."""
    layouts: dict[str, Mapping[str, Any]] = {}
    for tokens, outputs in ((8, 8), (16, 8), (64, 8), (64, 16)):
        layouts[f"1 stage, {tokens}/{outputs}"] = _one_stage(base, tokens, outputs)
    for tokens, outputs in (((16, 8), (16, 8)), ((64, 8), (64, 8)), ((64, 16), (64, 16))):
        layouts[f"2 stages, {tokens[0]}/{tokens[1]}"] = _two_stages(base, tokens, outputs)
    rate = base.optimizer.learning_rate
    axes = (
        Choice(name="layout", options=layouts),
        Choice.of(f"{_IMAGE}.assignment", "hard", "soft"),
        _multi_label(base, 0, 1, 3, 5),
        Choice.of("ingest.prompt_templates", "clip", "plain"),
        Range(name="loss.multi_label_weight", low=0.25, high=4.0, log=True),
        Range(name=f"{_IMAGE}.tau", low=0.25, high=4.0, log=True),
        Range(name="optimizer.learning_rate", low=rate / 4, high=rate * 4, log=True),
    )
    return Space(name="grouping", base=base, axes=axes)


def paper_table_1(base: ExperimentConfig) -> Space:
    """Table 1 of the paper: soft or hard assignment, without and with the multi-label loss; one stage, 3 seeds. Uses
    the base's number of prompts, or 3 as in the paper, and the base's layout if it has one stage."""
    layout = {} if len(base.model.image.num_output_groups) == 1 else _one_stage(base, 64, 8)
    assignments = {name: {f"{_IMAGE}.assignment": name, **layout} for name in ("soft", "hard")}
    axes = (
        _multi_label(base, 0, base.loss.num_prompts or 3),
        Choice(name=f"{_IMAGE}.assignment", options=assignments),
    )
    return Space(name="paper_table_1", base=base, axes=axes, num_seeds=3)


def paper_table_2(base: ExperimentConfig) -> Space:
    """Table 2 of the paper: group tokens / output groups of one stage, 16/4, 16/8, 32/8, 64/8 and 64/16; 3 seeds.
    Leaves out layouts with more group tokens than the base has image tokens."""
    pairs = ((16, 4), (16, 8), (32, 8), (64, 8), (64, 16))
    num_image_tokens = base.model.image.grid_size**2
    layouts = {f"{tokens}/{out}": _one_stage(base, tokens, out) for tokens, out in pairs if tokens <= num_image_tokens}
    return Space(name="paper_table_2", base=base, axes=(Choice(name="layout", options=layouts),), num_seeds=3)


def paper_table_3(base: ExperimentConfig) -> Space:
    """Table 3 of the paper: one grouping stage or two; 3 seeds. With 12 blocks as in the paper, 64 group tokens become
    8 groups after block 6, or 64 groups after block 6 and 8 after block 9. Smaller bases use a quarter of the tokens.
    The base's own layout is used for its number of stages."""
    own = {len(base.model.image.num_output_groups): _own_layout(base)}
    large = base.model.image.grid_size >= 14
    one, two = (
        (_one_stage(base, 64, 8), _two_stages(base, (64, 8), (64, 8)))
        if large
        else (
            _one_stage(base, 16, 8),
            _two_stages(base, (16, 8), (16, 8)),
        )
    )
    layouts = {"1 stage": own.get(1, one), "2 stages": own.get(2, two)}
    return Space(name="paper_table_3", base=base, axes=(Choice(name="layout", options=layouts),), num_seeds=3)


SPACES = {function.__name__: function for function in (debug, grouping, paper_table_1, paper_table_2, paper_table_3)}


def _multi_label(base: ExperimentConfig, *num_prompts: int) -> Choice:
    """Noun prompts per image. Without prompts, the scale of the multi-label loss is not trained, so a base that
    segments by it uses the image-text scale instead."""
    with_scale = base.segmentation.logit_scale == "multi_label"
    return Choice(
        name="loss.num_prompts",
        options={
            str(number): {"loss.num_prompts": number}
            | ({"segmentation.logit_scale": "multi_label" if number else "image_text"} if with_scale else {})
            for number in num_prompts
        },
    )


def _own_layout(base: ExperimentConfig) -> dict[str, Any]:
    image = base.model.image
    names = ("depths", "num_heads", "num_group_tokens", "num_output_groups")
    return {f"{_IMAGE}.{name}": getattr(image, name) for name in names}


def _one_stage(base: ExperimentConfig, tokens: int, outputs: int) -> dict[str, Any]:
    """One grouping block in the middle of the base's blocks, or at the end if the base ends with a grouping block."""
    total = sum(base.model.image.depths)
    first = total if base.model.image.depths[-1] == 0 else total // 2
    return _layout(base, (first, total - first), (tokens, 0), (outputs,))


def _two_stages(base: ExperimentConfig, tokens: tuple[int, int], outputs: tuple[int, int]) -> dict[str, Any]:
    """Grouping blocks after half and after three quarters of the base's blocks. If the base ends with a grouping block,
    the second one comes after the last block."""
    total = sum(base.model.image.depths)
    first = total // 2
    last = 0 if base.model.image.depths[-1] == 0 else (total - first) // 2
    return _layout(base, (first, total - first - last, last), (*tokens, 0), outputs)


def _layout(
    base: ExperimentConfig, depths: tuple[int, ...], tokens: tuple[int, ...], outputs: tuple[int, ...]
) -> dict[str, Any]:
    return {
        f"{_IMAGE}.depths": depths,
        f"{_IMAGE}.num_heads": (base.model.image.num_heads[0],) * len(depths),
        f"{_IMAGE}.num_group_tokens": tokens,
        f"{_IMAGE}.num_output_groups": outputs,
    }
