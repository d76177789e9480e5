"""Save the state of a run, with what of it Lightning does not save by itself."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torchmetrics import Metric

from manystream.training.checkpoints import random_state
from manystream.training.distributed import gathered
from manystream.training.feed import Feed
from manystream.training.options import Monitor
from manystream.training.run_folder import RunFolder


class StateSaver(Checkpoint):
    """Saves the state before every epoch, and if asked every so many batches within it.

    Before an epoch, all that belongs to the last one is done: validation, schedules, loggers. The
    random states and running metrics of every process are part of it, so that a run that is
    resumed does bit for bit what it would have done.

    Args:
        folder: where states are kept.
        feed: the training batches.
        monitor: what tells the best state; the first of equals is.
        every_n_steps: optimizer steps between states within an epoch; None saves only between
            epochs.
    """

    def __init__(
        self, folder: RunFolder, feed: Feed, monitor: Monitor, *, every_n_steps: int | None = None
    ) -> None:
        self.folder = folder
        self.feed = feed
        self.monitor = monitor
        self.every_n_steps = every_n_steps
        self.best_value: float | None = None
        self._is_best = False
        self._trainer: pl.Trainer
        self._metrics: dict[str, Any] | None = None
        self._just_resumed = False
        self._steps_logged: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring back what the epoch had logged."""
        if self._metrics is not None:
            _set_epoch_metrics(trainer, pl_module, self._metrics)
            self._metrics = None
        if self._is_best and trainer.is_global_zero:  # killed before the state got its second name
            self.folder.keep_as_best(self.folder.state_path(trainer.current_epoch, 0))
        self._is_best = False
        loop = trainer.fit_loop.epoch_loop
        between_epochs = self._just_resumed and loop.batch_progress.current.ready == 0
        self._steps_logged = loop._batches_that_stepped if between_epochs else None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the state between two epochs."""
        if trainer.current_epoch > 0 and not self._just_resumed:
            _begin_counting(trainer)
            self.save(trainer, 0)
        self._just_resumed = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Log at the step that the run is at.

        Lightning takes a state for one within a step, and counts that step when it goes on.
        """
        if self._steps_logged is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._steps_logged
            self._steps_logged = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Save the state within an epoch."""
        # Lightning takes no step of a plateau schedule after an epoch that it thinks is restarting.
        trainer.fit_loop._restarting = False
        self._just_resumed = False
        every, done = self.every_n_steps, trainer.fit_loop.batch_idx + 1
        if every is None or trainer.is_last_batch or done % trainer.accumulate_grad_batches:
            return
        if trainer.global_step % every == 0:
            self.save(trainer, done)

    def save(self, trainer: pl.Trainer, batch: int) -> None:
        """Save the state after so many batches of an epoch; all processes call it."""
        path = self.folder.state_path(trainer.current_epoch, batch)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            if self._is_best:
                self.folder.keep_as_best(path)
            self.folder.keep(path)
        self._is_best = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See whether the epoch was the best so far."""
        measured = trainer.callback_metrics.get(self.monitor.name)
        if measured is not None and self.monitor.is_better(measured.item(), self.best_value):
            self.best_value, self._is_best = measured.item(), True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the last epoch if it was the best; no next epoch will."""
        if self._is_best:
            self._is_best = False
            trainer.save_checkpoint(self.folder.best)

    def state_dict(self) -> dict[str, Any]:
        """Give the best value, and the state of every process; called in all of them."""
        trainer, now = self._trainer, random_state()
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        own = {
            "batch": batch,
            "random_before": self.feed.random_before if batch else now,
            "random_now": now,
            "metrics": _epoch_metrics(trainer, trainer.lightning_module) if batch else None,
        }
        return {
            "best_value": self.best_value,
            "is_best": self._is_best,
            "processes": gathered(own, trainer.world_size),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this process's state.

        Raises:
            ValueError: if the run had another number of processes.
        """
        if len(state["processes"]) != self._trainer.world_size:
            raise ValueError(
                f"the run had {len(state['processes'])} processes; resume it with as many, these "
                f"are {self._trainer.world_size}"
            )
        own = state["processes"][self._trainer.global_rank]
        self.best_value, self._is_best = state["best_value"], state["is_best"]
        self.feed.enter(own["batch"], own["random_before"], own["random_now"])
        self._metrics = own["metrics"]
        self._just_resumed = True


def _begin_counting(trainer: pl.Trainer) -> None:
    """Set the counters of the epoch to 0, as Lightning is about to; a saved state has them so."""
    loop = trainer.fit_loop.epoch_loop
    loop.batch_progress.reset_on_run()
    loop.scheduler_progress.reset_on_run()
    loop.automatic_optimization.optim_progress.reset_on_run()
    loop.val_loop.batch_progress.total.reset()


_ARGUMENTS = (
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "metric_attribute",
)


def _epoch_metrics(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Collect sums and counts of this process since the epoch began.

    Lightning keeps them in result objects that are no part of its checkpoints and have no public
    access; only this file looks into them.
    """
    results = trainer.fit_loop.epoch_loop._results.values()
    return {
        "logged": [_described(result) for result in results if not result.has_reset],
        "sums": [_sums(result) for result in results if not result.has_reset and result.is_tensor],
        "metrics": {
            name: _sums(part) for name, part in module.named_modules() if isinstance(part, Metric)
        },
    }


def _set_epoch_metrics(
    trainer: pl.Trainer, module: pl.LightningModule, state: dict[str, Any]
) -> None:
    """Go on counting where :func:`_epoch_metrics` was taken."""
    logged = [_log_again(trainer, module, described) for described in state["logged"]]
    sums = [result for result in logged if result.is_tensor]
    for result, saved in zip(sums, state["sums"], strict=True):
        _restore(result, saved)
    for name, saved in state["metrics"].items():
        _restore(module.get_submodule(name), saved)
    # The first batch that Lightning sees would otherwise begin the sums anew.
    trainer._logger_connector._first_loop_iter = True


def _described(result: Any) -> dict[str, Any]:
    meta = result.meta
    return {
        "fx": meta.fx,
        "name": meta.name,
        "reduce_fx": meta.reduce_fx.__name__,
        "sync_dist": meta.sync.should,
        "rank_zero_only": meta.sync.rank_zero_only,
        **{name: getattr(meta, name) for name in _ARGUMENTS},
    }


def _log_again(trainer: pl.Trainer, module: pl.LightningModule, described: dict[str, Any]) -> Any:
    """Make a result as logging did; its value is set afterwards."""
    results, attribute = trainer.fit_loop.epoch_loop._results, described["metric_attribute"]
    zero = torch.zeros((), device=module.device)
    value = zero if attribute is None else module.get_submodule(attribute)
    results.log(value=value, sync_dist_fn=trainer.strategy.reduce, batch_size=1, **described)
    return results[f"{described['fx']}.{described['name']}"]


def _sums(metric: Any) -> dict[str, Any]:
    return {"updates": metric._update_count, "state": dict(metric.metric_state)}


def _restore(metric: Any, saved: dict[str, Any]) -> None:
    for name, value in saved["state"].items():
        like = getattr(metric, name)
        setattr(metric, name, value.to(like.device) if isinstance(like, Tensor) else value)
    metric._update_count = saved["updates"]
    metric._computed = None
