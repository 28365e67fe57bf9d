"""The training loop of one worker: batch, step, log, checkpoint.

The loop does not use Ray: `WorkerContext` holds its inputs. Everything random is a function of (seed, step), so a loop
that resumes from a checkpoint gives the same bits as one that never stopped.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from groupvit import checkpoint
from groupvit.averaging import update_average
from groupvit.collectives import Slices
from groupvit.config import Precision, to_dict
from groupvit.model import GroupViT
from groupvit.noise import counter_noise, generator_noise
from groupvit.optim import build_optimizer, learning_rate, set_learning_rate
from groupvit.precision import float32_products, same_bits
from groupvit.training import Batch, train_step
from pipelines.errors import DrainedError
from pipelines.experiments.amendments import is_skipped, optimizer_at
from pipelines.experiments.config import ExperimentConfig
from pipelines.ingest.plan import Slice
from pipelines.provenance import redact_values
from pipelines.runs.evaluations import is_due
from pipelines.runs.folder import UNSENT_METRICS, RunFolder
from pipelines.tracking.tracker import Tracker
from pipelines.training.batches import BatchesAhead
from pipelines.training.checkpoint_writer import CheckpointWriter
from pipelines.training.compilation import prepare_towers
from pipelines.training.heartbeat import Heartbeat
from pipelines.training.lag import Lag
from pipelines.training.progress import Clock, RunStoppedError, Totals
from pipelines.training.skipping import SkippedSteps


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """Inputs of one training worker."""

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None
    """Process group of all workers. None: a single worker."""
    precision: Precision
    first_step: int
    """Step of the checkpoint to resume from; 0 without one."""
    slices: Iterator[Slice]
    """This worker's slices from `first_step` on: the workers take one in turn, also from one step to the next."""
    say: Callable[[str], None]
    """Shows a line of progress to the user."""
    tracker: Tracker | None
    """Tracker of the run, on rank 0 only."""
    watch: Callable[[int, Mapping[str, float]], None]
    """Shows the values of a logged step on the cluster's dashboard."""
    checkpoint_state: Mapping[str, Any]
    """Entries of state.json beside the progress: data set digests, code version."""
    leave_requested: Callable[[], bool] = lambda: False
    """Whether to leave now, with a checkpoint. All workers call it after each step, and get the same answer."""
    feed_watchdog: Callable[[], None] = lambda: None
    """Called after each step."""

    def share(self, step: int, num_slices: int) -> Slices:
        """How the workers share the slices of a step."""
        turns = (step - self.first_step) * num_slices
        return Slices(num_slices, self.group, turns % self.world_size)


def train(config: ExperimentConfig, run: RunFolder, context: WorkerContext) -> None:
    """Trains to the last step.

    Raises RunStoppedError if too many steps in a row had to be skipped, if too many images are corrupt, or if the
    checkpoint is invalid; DrainedError if all workers were asked to leave and have a checkpoint.
    """
    training, first_step = config.training, context.first_step
    torch.manual_seed(training.seed)
    model = GroupViT(config.model).to(context.device).train()
    optimizer = build_optimizer(model, config.optimizer)
    average = None if training.ema_decay is None else copy.deepcopy(model).requires_grad_(False)
    noise = counter_noise if training.deterministic else generator_noise
    assert training.reduce_precision != "auto", "the start of the run settles training.reduce_precision"
    totals = Totals(len(config.data.sources), context.group, context.device)
    say = context.say if context.rank == 0 else _say_nothing
    skipped = SkippedSteps(run, training, context.device, say if context.rank == 0 else None)
    seconds_before = 0.0
    if first_step:
        state = _restore(run, first_step, model, optimizer, average)
        totals.load(state)
        skipped.load(state)
        seconds_before = state["train_seconds"]
    clock = Clock(first_step, training.num_steps, training.global_batch_size, seconds_before)
    lag = Lag(context.group, context.device)
    slices: list[Slice] = []  # of the step, without images

    def micro_batches(share: Slices) -> Iterator[Batch]:
        for _ in share.own:
            with clock.waiting():
                prepared = next(batches)
            slices.append(prepared.samples)
            yield prepared.batch
        lag.is_ready()

    with (
        float32_products(context.device, context.precision),
        same_bits(training.deterministic),
        closing(BatchesAhead(_in_order(config, context), context.device, config.model.text)) as batches,
        Heartbeat(say, clock.activity) as heartbeat,
        CheckpointWriter(run, config) as writer,
    ):
        with clock.waiting():
            batches.peek()
        with clock.compiling():
            # No name for the batch, which would keep it on the GPU to the end.
            towers = prepare_towers(config, run, model, batches.peek().batch, noise, context.precision, say)
        for step in range(first_step, training.num_steps):
            slices.clear()
            share = context.share(step, config.slices_per_step)
            lag.start_step()
            optimizer_config = optimizer_at(config.optimizer, config.amendments, step)
            skip = is_skipped(config.amendments, step)
            rate = learning_rate(
                step, optimizer_config, num_steps=training.num_steps, global_batch_size=training.global_batch_size
            )
            set_learning_rate(optimizer, rate)
            metrics = train_step(
                model,
                optimizer,
                micro_batches(share),
                loss=config.loss,
                seed=training.seed,
                step=step,
                precision=context.precision,
                reduce_precision=training.reduce_precision,
                clip_grad_norm=config.optimizer.clip_grad_norm,
                guard=skipped.guard,
                skip=skip,
                noise=noise,
                towers=towers,
                group=context.group,
                num_slices=share.count,
                first_rank=share.first_rank,
            )
            if not skip:
                skipped.add(step, metrics)
            if average is not None and training.ema_decay is not None:
                update_average(average, model, training.ema_decay, step, metrics["skipped"])
            totals.add(slices)
            if training.record_samples is not None:
                _record_samples(Path(training.record_samples), context.rank, step, share, slices)

            writer.check()
            done = step + 1
            is_last = done == training.num_steps
            log = is_last or done % training.log_every_n_steps == 0
            evaluated = is_due(done, config.evaluation.every_n_steps, training.num_steps)
            leave = context.leave_requested() and not is_last
            save = is_last or evaluated or leave or done % training.checkpoint_every_n_steps == 0
            clock.update(done)
            context.feed_watchdog()
            if context.rank == 0 and not log and (step == first_step or heartbeat.is_due):
                heartbeat.say(clock.line(done, metrics["loss"].item()))
            if not (log or save):
                continue

            totals.share()
            totals.check(config.ingest.max_corrupt_fraction)
            values = {name: value.item() for name, value in metrics.items() if name != "skipped"} | skipped.look(done)

            if log:
                clock.lap()
                values |= {"learning_rate": rate, "substituted_images": totals.num_substituted} | clock.metrics()
                values |= lag.share()
                if context.rank == 0:
                    heartbeat.say(clock.line(done, values["loss"]))
                    context.watch(done, values)
                if context.tracker is not None:
                    named = {f"train/{name}": float(x) for name, x in values.items() if math.isfinite(x)}
                    context.tracker.log_metrics(named, done, training=True)

            if save and context.rank == 0:
                progress = {
                    "step": done,
                    **totals.state(),
                    **skipped.state(),
                    "train_seconds": clock.total_seconds(),
                }
                state = {**progress, **context.checkpoint_state, "config": redact_values(to_dict(config))}
                if context.tracker is not None:
                    state[UNSENT_METRICS] = context.tracker.unsent_training_metrics()
                with clock.saving():
                    writer.save(done, model, optimizer, average, state)
            if leave:
                raise DrainedError(f"the workers left after step {done}, with a checkpoint")


def _say_nothing(line: str) -> None:
    """Discards a line: only rank 0 shows lines."""


def _in_order(config: ExperimentConfig, context: WorkerContext) -> Iterator[Slice]:
    """Yields the slices of the remaining steps. Raises RuntimeError if one is not what the sample order expects."""
    size, num_steps = config.slice_size, config.training.num_steps
    for step in range(context.first_step, num_steps):
        for index in context.share(step, config.slices_per_step).own:
            item = next(context.slices, None)
            if item is None:
                raise RuntimeError(f"the data ended before step {step} of {num_steps}")
            expected = step * config.training.global_batch_size + index * size
            if item["position"][0] != expected or len(item["position"]) != size:
                raise RuntimeError(
                    f"rank {context.rank} got {len(item['position'])} samples from position {item['position'][0]} for "
                    f"slice {index} of step {step}; expected {size} from {expected}"
                )
            yield item


def _restore(
    run: RunFolder, step: int, model: GroupViT, optimizer: torch.optim.Optimizer, average: GroupViT | None
) -> dict[str, Any]:
    """Restores everything to the state after `step` steps. Returns the checkpoint's state.json.

    Raises RunStoppedError if the checkpoint is invalid: a restart would read it again.
    """
    try:
        with run.local_checkpoint(step) as folder:
            saved = checkpoint.load_optimizer_state(folder)
            optimizer.load_state_dict(saved["optimizer"])
            if average is None:
                checkpoint.load_weights(model, folder)
            else:
                checkpoint.load_weights(average, folder)
                model.load_state_dict(saved["raw_model"])
            return checkpoint.load_state(folder)
    except ValueError as error:
        uri = run.checkpoint_uri(step)
        raise RunStoppedError(f"{error}; without {uri} the run goes on from the checkpoint before it") from None


def _record_samples(folder: Path, rank: int, step: int, share: Slices, slices: list[Slice]) -> None:
    """Appends the ids of the samples that this worker consumed, one line per slice."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{rank}.jsonl").open("a", encoding="utf-8") as file:
        for index, item in zip(share.own, slices, strict=True):
            line = {"step": step, "slice": index, "ids": item["sample_id"].tolist(), "epochs": item["epoch"].tolist()}
            file.write(json.dumps(line) + "\n")
