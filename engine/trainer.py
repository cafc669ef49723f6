"""A whole run: stages, epochs, evaluation, checkpoints, and what is written down on the way."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from tqdm import tqdm

from engine.checkpoint import Position
from engine.config import Config
from engine.console import epoch_line
from engine.distributed import Process
from engine.evaluation import Predictions, evaluate
from engine.finite import FiniteCheck
from engine.headroom import headroom
from engine.learner import Learner
from engine.loop import Epoch, train_epoch
from engine.metrics import EvaluationResult
from engine.model import dropout_layers, set_dropout
from engine.progressive import History, ProgressiveSchedule, Stage
from engine.resume import LAST, Resumed
from engine.rundir import RunDirectory
from engine.saving import BEST, Saver
from engine.setup import Normalization, lr_factor_of
from engine.stopping import Clock, Ending, StopRequest, stopped_improving
from engine.telemetry import Telemetry
from engine.tuner import TUNED_LOADERS, Tuner
from engine.values import Target, parse_duration, parse_target
from loaders.augment import Augmentation
from loaders.bad_samples import BadSample
from loaders.contract import Loader
from loaders.cores import usable_cores
from loaders.dataset import ImageData
from loaders.plan import EpochPlan
from loaders.transfer import DeviceBatch, Transfer

logger = logging.getLogger("headrace")


class OutOfMemoryError(RuntimeError):
    """The device has too little memory for the largest size; the message says what to change."""


class Trainer:
    """Trains a model by a configuration whose autos are resolved.

    Args:
        data: what to train and evaluate on.
        source: identity of the data as they were opened, before any packing, and of the transforms.
        augmentation: how training images vary.
        run: where to write; None on all ranks but the first.
        stop: set by a signal.
        resumed: the run to go on with.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        source: dict[str, Any],
        process: Process,
        learner: Learner,
        augmentation: Augmentation,
        normalization: Normalization,
        loader: Loader,
        run: RunDirectory | None,
        stop: StopRequest,
        resumed: Resumed | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.process = process
        self.learner = learner
        self.loader = loader
        self.run = run
        self.stop = stop
        self.augmentation = augmentation
        self.schedule = ProgressiveSchedule.from_config(config)
        self.transfer = Transfer(
            process.device,
            normalization.mean,
            normalization.std,
            dtype=learner.precision.dtype or torch.float32,
            channels_last=config.model.channels_last,
        )
        self._load = loader.run
        self._tuner: Tuner | None = None
        if config.loader.num_workers == "auto" and loader.name in TUNED_LOADERS:
            most = int(usable_cores(process.local_world))
            self._tuner = Tuner(loader, most, self.transfer.wait_seconds, process.largest)
            self._load = self._tuner.batches
        self._has_started = self._is_searching = False
        self._told_headroom: set[int] = set()  # stages
        self.dropout_layers = dropout_layers(learner.model) if config.model.dropout else []
        self.telemetry = Telemetry(process.device, process.local_world)
        self.position = Position()
        self.target: Target | None = parse_target(config.run.target) if config.run.target else None
        self.last_result: tuple[EvaluationResult, Predictions] | None = None
        self.finite = FiniteCheck(learner, process, data.train.paths, config.run.log_every)
        self.saver = Saver(config, source, data.classes, process, learner, normalization, loader.bad_samples, run)
        if resumed is not None:
            self.position = self.saver.restore(resumed)
        time_limit = parse_duration(config.run.time_limit) if config.run.time_limit else 0.0
        self.clock = Clock(time_limit, self.position.seconds)

    # The run

    def fit(self) -> Ending:
        """Train until the last epoch or until something ends it before.

        Raises:
            OutOfMemoryError: the largest size does not fit the device.
            NonFiniteLossError: the loss is not finite, and that is to end the run.
        """
        epochs = self.config.optimizer.epochs
        largest = max(self.schedule.stages, key=lambda stage: stage.batch_size * stage.resolution**2)
        self._prepare(largest, first=True)
        self.saver.restore_rng()
        self.saver.restart_clock()
        prepared = largest.index
        while self.position.epoch < epochs:
            stage = self._stage()
            started = time.monotonic()
            if stage.index != prepared:
                self._prepare(stage)
                prepared = stage.index
            self.position.switch_seconds += time.monotonic() - started
            try:
                ending = self._train_epoch(stage)
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory(stage) from error
            ending = ending or self._end_epoch(stage)
            if ending is not None:
                return self._finish(ending)
        return self._finish(Ending(f"all {epochs} epochs are trained", finished=True))

    def _stage(self) -> Stage:
        """Return the stage of the epoch under way, which is chosen when it starts."""
        position = self.position
        if position.next_batch == 0:
            progress = position.epoch / self.config.optimizer.epochs
            stage = self.schedule.stage_at(progress, History.from_list(position.history))
            position.stage = stage.index
        return self.schedule.stages[position.stage]

    def _prepare(self, stage: Stage, first: bool = False) -> None:
        """Set the rate of dropout of a stage, and warm up at it."""
        set_dropout(self.dropout_layers, self.config.model.dropout * stage.regularization)
        try:
            self.learner.warm_up(stage.batch_size, stage.resolution)
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(stage) from error
        if not first and self.process.device.type == "cuda":
            torch.cuda.empty_cache()

    def _out_of_memory(self, stage: Stage) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"a batch of {-(-stage.batch_size // self.process.world)} images of {stage.resolution} px does not fit "
            f"into the memory of {self.process.device}: lower --batch-size, split it with --grad-accum-steps "
            f"{2 * self.config.optimizer.grad_accum_steps}, or use --amp bf16"
        )

    def _finish(self, ending: Ending) -> Ending:
        self.position.finished = ending.finished
        self._save(LAST)
        self.telemetry.close()
        return ending

    # An epoch

    def _plan(self, stage: Stage) -> EpochPlan:
        options, position, process = self.config, self.position, self.process
        view = self.augmentation.view(
            stage.resolution,
            stage.batch_size,
            balanced=options.loss.balanced_sampling,
            drop_last=options.loader.drop_last,
        )
        train, seed = self.data.train, options.run.seed
        return EpochPlan(train, position.epoch, view, seed, process.rank, process.world, position.next_batch)

    def _train_epoch(self, stage: Stage) -> Ending | None:
        """Train one epoch, or what is left of it; return how the run ends if it ends here."""
        plan = self._plan(stage)
        if self.position.next_batch == 0:
            self.learner.reset_sums()
        self.telemetry.start()
        self._watched_from = self.position.samples_seen
        self.transfer.take_wait_seconds()
        self.transfer.take_augment_seconds()
        self._before, self._steps_before, self._steps_to_check = self.position.train_seconds, self.position.steps, 1
        self._is_searching = self._tuner is not None
        self._ending: Ending | None = None
        self._logged = (time.monotonic(), self.position.samples_seen, self.learner.sums.tolist())
        self._started = time.monotonic()
        options, size, samples = self.config.optimizer, stage.batch_size, plan.num_samples
        epoch = Epoch(
            plan,
            self.augmentation.scaled(stage.regularization),
            lambda step: stage.lr_scale * lr_factor_of(options, (plan.epoch + step * size / samples) / options.epochs),
        )
        with tqdm(
            total=plan.num_batches,
            initial=plan.start_batch,
            desc=f"epoch {plan.epoch + 1}/{options.epochs} {stage.resolution} px",
            unit="batch",
            disable=self.run is None,
            leave=False,
            dynamic_ncols=True,
        ) as self._progress:
            done = train_epoch(
                self.learner, self._load, self.transfer, epoch, self.position, self._after_step, self._progress
            )
            if done:
                self._log()  # reads the sums, so that the device has done all steps
            self._count_time()
        return None if done else self._ending

    def _count_time(self) -> None:
        """Bring the times of the epoch under way up to date."""
        self.position.train_seconds = self._before + time.monotonic() - self._started
        self.position.data_wait_seconds += self.transfer.take_wait_seconds()
        self.position.augment_seconds += self.transfer.take_augment_seconds()
        self.position.seconds = self.clock.elapsed

    def _after_step(self, batch: DeviceBatch) -> bool:
        """Log, save, and look whether the run has to end; return True if it has."""
        self.finite.remember(self.position.steps, batch.indices)
        if not self._has_started:
            self._has_started = True
            self.position.start_seconds += batch.wait_seconds  # once more in an epoch that is resumed
        self._look_for_end_of_search()
        if self.position.steps % self.config.run.log_every == 0:
            self._log()
        # Several ranks must agree, which costs a message, so they look every few seconds; one looks at every step.
        if self.process.world > 1:
            self._steps_to_check -= 1
            if self._steps_to_check > 0:
                return False
            self._steps_to_check = self._check_interval()
        stop, late, save = self._agree(bool(self.stop), self.clock.is_over(), self.saver.is_due)
        if stop or late:
            self._count_time()
            self._ending = self._early_ending(stop)
            return True
        if save:
            self._count_time()
            self._save(LAST)
            self._before, self._started = self.position.train_seconds, time.monotonic()
        return False

    def _look_for_end_of_search(self) -> None:
        """Where the number of workers has been found, begin anew to watch what limits training."""
        if not (self._is_searching and self._tuner is not None and self._tuner.is_settled):
            return
        self._is_searching = False
        if self.position.steps > self._steps_before + 1:  # otherwise it was known
            self._count_time()
            self.position.end_search(self._epoch_samples())
            self.telemetry.forget_processor_time()
            self._watched_from = self.position.samples_seen

    def _epoch_samples(self) -> int:
        """Return on how many samples the epoch under way has been trained, over all ranks."""
        return min(self.position.next_batch * self._stage().batch_size, len(self.data.train))

    def _check_interval(self) -> int:
        """Return after how many steps the ranks look again: about five seconds' worth, the same number on all."""
        done = max(self.position.steps - self._steps_before, 1)
        (seconds,) = self.process.largest([(time.monotonic() - self._started) / done])
        return max(1, int(5 / max(seconds, 1e-3)))

    def _agree(self, *flags: bool) -> list[bool]:
        """Return each flag as it is on any rank."""
        return [bool(flag) for flag in self.process.largest(flags)]

    def _log(self) -> None:
        """Read the sums from the device, and show and record them."""
        self.finite.check(self.position.epoch)
        now, samples = time.monotonic(), self.position.samples_seen
        sums = self.process.sum(self.learner.sums.clone()).tolist()
        then, samples_then, sums_then = self._logged
        count = sums[2] - sums_then[2]
        if self.run is None or not count:
            return
        rate = (samples - samples_then) / max(now - then, 1e-9)
        self._logged = (now, samples, sums)
        loss, top1 = sums[0] / sums[2], 100 * sums[1] / sums[2]
        self.position.data_wait_seconds += self.transfer.take_wait_seconds()
        wait = self.position.data_wait_seconds
        elapsed = self._before + now - self._started
        left = (self.config.optimizer.epochs * len(self.data.train) - samples) / max(rate, 1e-9)
        self._progress.set_postfix_str(
            f"loss {loss:.3f}, top-1 {top1:.1f} %, {rate:.0f} images/s, {wait / max(elapsed, 1e-9):.0%} waiting, "
            f"run done in {left / 60:.1f} min"
        )
        self.run.record_step(
            {
                "step": self.position.steps,
                "epoch": self.position.epoch,
                "loss": (sums[0] - sums_then[0]) / count,
                "lr": self.learner.optimizer.param_groups[0]["lr"],
                "images_per_second": rate,
                "time": self.clock.elapsed,
            },
            self.position.steps,
        )

    def _end_epoch(self, stage: Stage) -> Ending | None:
        """Evaluate, record and save; return how the run ends if it ends here."""
        position = self.position
        if self._is_searching:
            position.end_search(self._epoch_samples())
        self._share_bad_samples()
        telemetry = self.telemetry.collect((position.samples_seen - self._watched_from) // self.process.world)
        sums = self.process.sum(self.learner.sums.clone()).tolist()
        record: dict[str, Any] = {
            "epoch": position.epoch,
            "stage": stage.index,
            "resolution": stage.resolution,
            "batch_size": stage.batch_size,
            "lr": self.learner.optimizer.param_groups[0]["lr"],
            "train_loss": sums[0] / max(sums[2], 1),
            "train_top1": 100 * sums[1] / max(sums[2], 1),
        }
        evaluating = time.monotonic()
        improved = False
        if len(self.data.val):
            result, predictions = self.evaluate(self.config.resolution.val_resolution)
            self.last_result = (result, predictions)
            self._share_bad_samples()
            record |= {"val_loss": result.loss, "top1": result.top1, "top5": result.top5}
            improved = position.best is None or result.top1 > position.best
            position.best = max(result.top1, position.best or 0.0)
            position.history.append([position.epoch, stage.index, result.top1])
        val_seconds = time.monotonic() - evaluating
        record |= {
            "images_per_second": sums[2] / position.train_seconds,
            "seconds": position.train_seconds + position.switch_seconds + val_seconds,
            "train_seconds": position.train_seconds,
            "val_seconds": val_seconds,
            "data_wait_seconds": position.data_wait_seconds,
            "data_wait_fraction": position.data_wait_seconds / position.train_seconds,
            "start_seconds": position.start_seconds,
            "search_seconds": position.search_seconds,
            "search_wait_seconds": position.search_wait_seconds,
            "search_augment_seconds": position.search_augment_seconds,
            "search_samples": position.search_samples,
            "augment_seconds": position.augment_seconds,
            "switch_seconds": position.switch_seconds,
            "samples_seen": position.samples_seen,
            "steps": position.steps,
            "bad_samples": len(self.loader.bad_samples),
            "num_workers": self.loader.num_workers,
            "workers_settled": self._tuner is None or self._tuner.is_settled,
            "tuned": self._tuner is not None and self._tuner.is_settled,
            "cores": usable_cores(self.process.local_world),
            "world_size": self.process.world,
            "bytes_per_image": float(self.data.train.sizes.mean()),
            "skipped_steps": int(sums[3]),
            "time": self.clock.elapsed,
            **telemetry,
        }
        position.begin_epoch()
        position.seconds = self.clock.elapsed
        if self.run is not None:
            self.run.record_epoch(record, position.steps)
            tqdm.write(epoch_line(record, self.config.optimizer.epochs))
            if stage.index not in self._told_headroom and (line := headroom(record)):
                self._told_headroom.add(stage.index)
                logger.info(line)
        if improved or not len(self.data.val):
            self._save(BEST)
            self.saver.save_model()
        self._save(LAST)  # after the best: a kill in between repeats the epoch and finds the best again
        return self._ending_after_epoch(record)

    def _ending_after_epoch(self, record: dict[str, Any]) -> Ending | None:
        options = self.config
        if self.position.epoch == options.optimizer.epochs:
            return None
        stop, late, reached, stalled = self._agree(
            bool(self.stop),
            self.clock.is_over(),
            self.target is not None and record.get(self.target.metric, 0.0) >= self.target.value,
            stopped_improving([row[2] for row in self.position.history], options.run.early_stop),
        )
        if reached and not stop:
            return Ending(f"the target {options.run.target} is reached", finished=True)
        if stalled and not stop:
            return Ending(f"{options.run.early_stop} epochs brought no better top-1", finished=True)
        return self._early_ending(stop) if stop or late else None

    def _early_ending(self, stopped: bool) -> Ending:
        """Return how a run ends that a signal stopped or, without one, whose time is over."""
        if not stopped:
            return Ending(f"the time limit of {self.config.run.time_limit} is reached", finished=False)
        name = self.stop.signal.name if self.stop.signal else "a signal to another process"
        return Ending(f"{name} was received", finished=False, interrupted=True)

    def _share_bad_samples(self) -> None:
        """Let every rank know, and the first one write down, what any of them found."""
        if self.process.world == 1:
            return
        rows = {row for rows in self.process.gather(self.loader.bad_samples.state_dict()) for row in rows}
        for dataset in (self.data.train, self.data.val):
            self.loader.bad_samples.record(dataset, [BadSample(*row) for row in sorted(rows) if row[0] == dataset.name])

    def evaluate(self, resolution: int) -> tuple[EvaluationResult, Predictions]:
        """Evaluate the weights to keep on the validation set."""
        return evaluate(
            self.learner.evaluated,
            self.loader,
            self.transfer,
            self.data.val,
            self.process,
            self.learner.precision,
            resolution=resolution,
            batch_size=max(stage.batch_size for stage in self.schedule.stages),
            crop_fraction=self.config.resolution.crop_fraction,
            flip=self.config.run.tta,
            show_progress=self.run is not None,
        )

    def _save(self, name: str) -> None:
        self.finite.check(self.position.epoch)
        self.saver.save(name, self.position)
