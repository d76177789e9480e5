"""What an epoch has logged so far, so that a run can go on within it.

Lightning keeps it in result objects that are no part of its checkpoints and have no public access;
this is the one place that looks into them.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

_ARGUMENTS = (
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "metric_attribute",
)


def epoch_metrics_state(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Sums and counts of this process since the epoch began."""
    results = trainer.fit_loop.epoch_loop._results.values()
    return {
        "logged": [_described(result) for result in results if not result.has_reset],
        "sums": [_sums(result) for result in results if not result.has_reset and result.is_tensor],
        "metrics": {
            name: _sums(part) for name, part in module.named_modules() if isinstance(part, Metric)
        },
    }


def set_epoch_metrics(
    trainer: pl.Trainer, module: pl.LightningModule, state: dict[str, Any]
) -> None:
    """Go on counting where :func:`epoch_metrics_state` was taken."""
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
