"""Ray: a worker of Ray Train, killed and resumed, with evaluation beside it; and training from JPEG files."""

import contextlib
import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pipelines.experiments.catalogue import gcc_yfcc_30e
from pipelines.experiments.config import ExperimentConfig
from tests.gpu.card.context import Context
from tests.gpu.card.learning import largest_difference, shapes, small_config
from tests.gpu.card.material import make_slice, write_photos
from tests.gpu.card.report import SkippedError
from tests.gpu.card.step import Step, batch_of, batches_ahead, compiled, make_step, new_model

NUM_STEPS, KILLED_AT, CHECKPOINT_EVERY = 80, 45, 20
SHARE_OF_TRAINING, SHARE_OF_EVALUATION = 0.75, 0.25
NUM_SCENES, NUM_PHOTOS, DIFFERENT_PHOTOS = 8, 4096, 256
NUM_PROMPTS = 3

AugmentOn = Literal["device", "cpu"]


def ray_worker(context: Context) -> None:
    try:
        import psutil  # noqa: F401
        import ray.data
        import ray.train  # noqa: F401
    except ImportError as error:
        raise SkippedError(f"needs the package {(error.name or 'ray').partition('.')[0]}") from None
    with _cluster(context):
        row = context.report.row
        row("a worker of Ray Train", partial(_undisturbed, context), seconds=30)
        row("a killed worker, evaluation beside it", partial(_killed, context), seconds=40)
        row("from JPEG files", partial(_from_files, context), seconds=30)


def _from_files(context: Context) -> None:
    step = _warm_step(context)
    for augment_on in get_args(AugmentOn):
        context.report.row(_title(augment_on), partial(_end_to_end, context, step, augment_on), seconds=20)


@contextlib.contextmanager
def _cluster(context: Context) -> Iterator[None]:
    from pipelines.cluster.session import ray_cluster

    start = time.perf_counter()
    with ray_cluster(least_cpus=4):
        import ray

        resources = ray.cluster_resources()
        values = {"start s": time.perf_counter() - start, "version": ray.__version__}
        values |= {"CPUs": resources.get("CPU", 0.0), "GPUs": resources.get("GPU", 0.0)}
        context.report.measured("cluster", values)
        yield


def _config(context: Context, name: str) -> ExperimentConfig:
    runs = context.out / "ray_runs"
    base = small_config(shapes(context), runs, num_steps=NUM_STEPS, deterministic=True)
    training = dataclasses.replace(
        base.training,
        device="gpu" if context.device.is_gpu else "cpu",
        gpus_per_worker=SHARE_OF_TRAINING,
        checkpoint_every_n_steps=CHECKPOINT_EVERY,
        keep_checkpoints=None,
        run_name=name,
        record_samples=str(runs / "samples" / name),
    )
    ingest = dataclasses.replace(base.ingest, max_processes=context.sizes.reading_processes or 2)
    return dataclasses.replace(base, training=training, ingest=ingest)


def _undisturbed(context: Context) -> None:
    from pipelines.training.pretrain import pretrain

    shutil.rmtree(context.out / "ray_runs", ignore_errors=True)
    start = time.perf_counter()
    summary = pretrain(_config(context, "undisturbed"))
    values = {"seconds": time.perf_counter() - start, "loss": summary["loss"], "images/s": summary["images_per_second"]}
    context.report.check("a worker of Ray Train", summary["step"] == NUM_STEPS, values, "it stopped early")


def _killed(context: Context) -> None:
    """The run ends, having consumed the samples of the undisturbed one, and its checkpoints are evaluated."""
    from pipelines.training.pretrain import pretrain
    from tests.support.small_run import consumed

    runs, name = context.out / "ray_runs", "killed"
    config = _config(context, name)
    evaluates = True
    try:
        import mlflow  # noqa: F401
    except ImportError:
        evaluates = False
        context.report.skip("evaluation beside training", "needs the package mlflow")
    if evaluates:
        config = dataclasses.replace(config, evaluation=_evaluation(context, config))
    killed: list[int] = []
    killer = threading.Thread(target=_kill_at, args=(runs, name, killed), daemon=True)
    killer.start()
    start = time.perf_counter()
    summary = pretrain(config)
    killer.join(timeout=1)
    seconds = time.perf_counter() - start
    same_samples = consumed(runs, name) == consumed(runs, "undisturbed")
    passed = bool(killed) and summary["step"] == NUM_STEPS and same_samples
    values: dict[str, Any] = {"killed at step": killed[0] if killed else None, "seconds": seconds}
    why = f"killed: {killed}, last step {summary['step']}, the same samples: {same_samples}"
    context.report.check("a killed worker resumes", passed, values | {"loss": summary["loss"]}, why)
    last = f"checkpoints/step-{NUM_STEPS:08d}/model.safetensors"
    error = largest_difference(runs / name / last, runs / "undisturbed" / last)
    context.report.at_most("a killed worker, the same bits", error, 0.0)
    if evaluates:
        scores = summary["evaluations"]["scores"]
        found = {f"mIoU at {step}": float(score) for step, score in scores.items()}
        expected = NUM_STEPS // CHECKPOINT_EVERY
        context.report.check(
            "evaluation beside training", len(scores) == expected, found, f"expected {expected} evaluations"
        )


def _kill_at(runs: Path, name: str, killed: list[int]) -> None:
    """Kills the training worker once it has done some steps."""
    from tests.support.processes import ray_processes
    from tests.support.small_run import last_recorded_step, wait_for_step

    wait_for_step(runs, name, KILLED_AT, alive=lambda: True)
    for process in ray_processes():
        killed.append(last_recorded_step(runs, name))
        process.kill()


def _evaluation(context: Context, config: ExperimentConfig) -> Any:
    """Scenes of shapes are evaluated on a share of the card."""
    from tests.support.scenes_folder import write_scenes

    folder = context.out / "scenes"
    if not (folder / "scenes.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_scenes(folder, NUM_SCENES)
    return dataclasses.replace(
        config.evaluation,
        root=str(folder),
        every_n_steps=CHECKPOINT_EVERY,
        num_pictures=0,
        registered_model=None,
        gpus_per_worker=SHARE_OF_EVALUATION if context.device.is_gpu else 0.0,
    )


def _end_to_end(context: Context, step: Step, augment_on: AugmentOn) -> None:
    """Ray Data decodes on all cores; the step runs in this process."""
    import simplejpeg  # noqa: F401

    from pipelines.ingest.loader import iter_slices, num_prefetched, object_store_bytes, training_slices

    device, sizes = context.device, context.sizes
    config = _photo_config(context, _photos(context), augment_on)
    num_prompts, batch_size = config.loss.num_prompts, config.training.global_batch_size
    counted_from = sizes.end_to_end_steps // 3  # the reading processes start one after the other
    begin = started = time.perf_counter()
    first = waited = 0.0
    shard = training_slices(config, first_step=0)
    slices = iter_slices(shard, prefetch_slices=num_prefetched(config, object_store_bytes()))
    with batches_ahead(slices, device, sizes.model) as batches:
        for number in range(sizes.end_to_end_steps):
            before = time.perf_counter()
            batch = next(batches)
            first = first or time.perf_counter() - begin
            waited += time.perf_counter() - before
            if number == counted_from:
                device.wait()
                started, waited = time.perf_counter(), 0.0
            step([batch], num_prompts)
        device.wait()
    seconds = time.perf_counter() - started
    values = {
        "images/s": (sizes.end_to_end_steps - counted_from) * batch_size / seconds,
        "waiting for data": waited / seconds,
        "first batch s": first,
        "cores": len(os.sched_getaffinity(0)),
    }
    context.report.measured(_title(augment_on), values)


def _title(augment_on: AugmentOn) -> str:
    return f"from JPEG files, augmented on the {augment_on}"


def _photos(context: Context) -> str:
    folder = context.out / "photos"
    if not (folder / "dataset.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        number, different = (NUM_PHOTOS, DIFFERENT_PHOTOS) if context.device.is_gpu else (128, 8)
        write_photos(str(folder), number, different=different)
    return str(folder)


def _photo_config(context: Context, data: str, augment_on: AugmentOn) -> ExperimentConfig:
    """The paper's augmentation and prompts; a slice is a batch."""
    base, sizes = gcc_yfcc_30e(), context.sizes
    size = sizes.end_to_end_batch
    return dataclasses.replace(
        base,
        model=sizes.model,
        data=dataclasses.replace(base.data, sources=(data,)),
        ingest=dataclasses.replace(
            base.ingest,
            slice_size=size,
            window_size=size,
            augment_on=augment_on,
            max_processes=sizes.reading_processes,
        ),
        training=dataclasses.replace(
            base.training,
            num_steps=sizes.end_to_end_steps,
            global_batch_size=size,
            num_workers=1,
            cpus_per_worker=1,
        ),
    )


def _warm_step(context: Context) -> Step:
    """A compiled step that has seen some batches."""
    device, sizes = context.device, context.sizes
    slices = [make_slice(sizes.end_to_end_batch, NUM_PROMPTS, sizes.model, seed=seed) for seed in range(2)]
    batches = [batch_of(item, device, sizes.model) for item in slices]
    model = new_model(device, sizes.model)
    step = make_step(device, model, sizes.precision, compiled(device, model, batches[0], sizes.precision))
    for batch in batches:
        step([batch], NUM_PROMPTS)
    return step
