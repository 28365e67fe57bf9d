"""Ray: a worker of Ray Train, killed and resumed, with evaluation beside it; and training from JPEG files."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.experiments.catalogue import gcc_yfcc_30e
from pipelines.experiments.config import ExperimentConfig
from pipelines.ingest.plan import Slice
from tests.gpu.card.context import Context
from tests.gpu.card.learning import largest_difference, shapes, small_config
from tests.gpu.card.material import make_slice, write_photos
from tests.gpu.card.report import SkippedError
from tests.gpu.card.step import batch_of, compile_model, make_step, new_model

NUM_STEPS, KILLED_AT, CHECKPOINT_EVERY = 80, 45, 20
SHARE_OF_TRAINING, SHARE_OF_EVALUATION = 0.75, 0.25
NUM_SCENES, SCENE_SIDE = 8, 96
NUM_PHOTOS, DIFFERENT_PHOTOS = 4096, 256


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
        row("from JPEG files", partial(_end_to_end, context), seconds=30)


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
    base = small_config(shapes(context), runs, num_steps=NUM_STEPS, deterministic=False)
    with contextlib.suppress(SkippedError):
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
    if getattr(config.training, "deterministic", not context.device.is_gpu):
        context.report.at_most("a killed worker, the same bits", error, 0.0)
    else:
        context.report.measured("a killed worker", {"largest difference of a weight": error})
    if evaluates:
        scores = summary["evaluations"]["scores"]
        found = {f"mIoU at {step}": float(score) for step, score in scores.items()}
        expected = NUM_STEPS // CHECKPOINT_EVERY
        context.report.check(
            "evaluation beside training", len(scores) == expected, found, f"expected {expected} evaluations"
        )


def _kill_at(runs: Path, name: str, killed: list[int]) -> None:
    """Kills the training worker once it has done some steps."""
    import psutil

    from tests.support.small_run import last_recorded_step, wait_for_step

    wait_for_step(runs, name, KILLED_AT, alive=lambda: True)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()[:1]):
                killed.append(last_recorded_step(runs, name))
                os.kill(process.pid, signal.SIGKILL)
                return


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


def _end_to_end(context: Context) -> None:
    """Ray Data decodes and augments on all cores; the step runs in this process."""
    import simplejpeg  # noqa: F401

    from pipelines.ingest.loader import iter_slices, training_slices

    device, sizes = context.device, context.sizes
    folder = context.out / "photos"
    if not (folder / "dataset.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        few = not device.is_gpu
        write_photos(str(folder), 128 if few else NUM_PHOTOS, different=8 if few else DIFFERENT_PHOTOS)
    config = _photo_config(context, str(folder))
    step = _warm_step(context, config)
    shard = training_slices(config, first_step=0)
    slices: Iterator[Slice] = iter_slices(shard, prefetch_slices=config.ingest.prefetch_slices)
    begin = time.perf_counter()
    first_slice, waited, started = 0.0, 0.0, 0.0
    counted_from = sizes.end_to_end_steps // 3  # the reading processes start one after the other
    for number in itertools.count():
        before = time.perf_counter()
        item = next(slices, None)
        if item is None:
            break
        now = time.perf_counter()
        first_slice = first_slice or now - begin
        if number == counted_from:
            device.wait()
            started, waited = time.perf_counter(), 0.0
        else:
            waited += now - before
        step([batch_of(item, device, sizes.model)], config.loss.num_prompts)
    device.wait()
    seconds, steps = time.perf_counter() - started, sizes.end_to_end_steps - counted_from
    values = {
        "images/s": steps * config.training.global_batch_size / seconds,
        "waiting for data": waited / seconds,
        "first slice s": first_slice,
        "cores": len(os.sched_getaffinity(0)),
    }
    context.report.measured("from JPEG files", values)


def _photo_config(context: Context, data: str) -> ExperimentConfig:
    """The paper's augmentation and prompts; a slice is a batch."""
    base, sizes = gcc_yfcc_30e(), context.sizes
    size = sizes.end_to_end_batch
    return dataclasses.replace(
        base,
        model=sizes.model,
        data=dataclasses.replace(base.data, sources=(data,)),
        ingest=dataclasses.replace(
            base.ingest, slice_size=size, window_size=size, max_processes=sizes.reading_processes
        ),
        training=dataclasses.replace(
            base.training,
            num_steps=sizes.end_to_end_steps,
            global_batch_size=size,
            num_workers=1,
            cpus_per_worker=1,
        ),
    )


def _warm_step(context: Context, config: ExperimentConfig) -> Any:
    """A compiled step that has seen some batches."""
    device, sizes = context.device, context.sizes
    model = new_model(device, sizes.model)
    compile_model(device, model)
    step, num_prompts = make_step(device, model, sizes.precision), config.loss.num_prompts
    for seed in range(2):
        item = make_slice(config.ingest.slice_size, num_prompts, sizes.model, seed=seed)
        step([batch_of(item, device, sizes.model)], num_prompts)
    return step
