"""What every task says: its targets, its losses, its metrics, and how predictions are shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from manystream.batch import StreamBatch, map_target
from manystream.presence import Views

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

Tree = Any
"""A tensor, or dicts, lists and tuples of tensors; the first dimension of each counts samples."""

Loss = Callable[[Tensor, Tree], Tensor]
"""From a network's output, (V, ...), and its targets to one loss per view, (V,); or to their mean,
(), where a user's loss gives no more."""


@dataclass(frozen=True)
class Quantity:
    """How a metric is shown.

    Attributes:
        title: its name in a table or figure.
        is_share: whether it is a share of 1, shown as per cent and drawn from 0 to 1.
        chance: what guessing reaches, if that is known without targets.
        meaning: a sentence for readers to whom it may be new.
    """

    title: str
    is_share: bool = False
    chance: float | None = None
    meaning: str = ""

    def text(self, value: float) -> str:
        """Write a value, as per cent if it is a share."""
        return f"{100 * value:.1f} %" if self.is_share else f"{value:.4g}"


class Answer(NamedTuple):
    """A prediction of one sample, as a person reads it.

    Attributes:
        text: what is said of the sample, for example a class.
        confidence: how sure the network is, 0 to 1; None where a task knows no such thing.
        is_right: whether it is the target; None where answers are not simply right or wrong.
    """

    text: str
    confidence: float | None = None
    is_right: bool | None = None


class Task(ABC):
    """What a network is trained and measured on.

    A task of one's own names :attr:`num_outputs`, :attr:`primary_metric`, a loss and metrics; all
    else has a default. A *view* is a row of the network's output: a sample, seen with some of its
    streams. Where targets or predictions are said to be trees, they are a tensor, or dicts, lists
    and tuples of tensors.

    Attributes:
        name: what a model file calls the task.
        num_outputs: size of the network's head.
        primary_metric: name of the metric that tells a better network from a worse one.
        higher_is_better: whether more of it is better.

    Example:
        >>> from torchmetrics import MeanAbsoluteError, MetricCollection
        >>> class Age(Task):
        ...     name, num_outputs = "age", 1
        ...     primary_metric, higher_is_better = "mae", False
        ...     def loss(self, output, target):
        ...         return (output[:, 0] - target).square()
        ...     def predict(self, output):
        ...         return output[:, 0]
        ...     def metrics(self):
        ...         return MetricCollection({"mae": MeanAbsoluteError()})
        >>> Age().loss(torch.tensor([[30.0], [40.0]]), torch.tensor([31.0, 40.0]))
        tensor([1., 0.])
    """

    name: ClassVar[str]
    num_outputs: int
    primary_metric: str
    higher_is_better: bool = True

    @abstractmethod
    def loss(self, output: Tensor, target: Tree) -> Tensor:
        """Measure how wrong an output is, as evaluation does.

        Args:
            output: of the network, shape (V, num_outputs, ...).
            target: of each view, V entries in every tensor.

        Returns:
            One loss per view, shape (V,), float32 or wider; or their mean, shape ().
        """

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Make metrics that are updated with predictions and targets, by plain names.

        They stand on their own (``compute_groups=False``) and do not wait for the device.
        """

    def evaluation_metrics(self) -> MetricCollection:
        """Make the metrics of an evaluation: those of :meth:`metrics`, and what training is spared.

        As those, they do not wait for the device.
        """
        return self.metrics()

    def chance_level(self) -> Metric | None:
        """Make a metric that is updated with targets alone and tells what guessing reaches.

        Returns:
            Its value is a dict by names of :meth:`evaluation_metrics`, as far as an answer that is
            the same for all samples has a level worth knowing; None if nothing is known.
        """
        return None

    def check_target(
        self, target: Tree | None, num_samples: int, ids: Sequence[str] | None = None
    ) -> None:
        """Refuse a target that no loss can be taken from; here, one of another length.

        Args:
            target: of a batch.
            num_samples: its samples B.
            ids: their names, for the message.

        Raises:
            ValueError: naming the sample where there is one to name.
        """
        if target is None:
            raise ValueError("the loader's batches have no target; expected one per sample")
        for leaf in tree_leaves(target):
            if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != num_samples:
                came = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
                raise ValueError(f"target has {came}; expected a tensor with {num_samples} entries")

    def training_loss(self, options: Any, targets: Tree | None = None) -> Loss:
        """Make the loss that training minimises.

        Args:
            options: :class:`manystream.training.FitOptions`, of which a task reads what concerns
                it.
            targets: of the whole training set, for what is counted from them; None if unknown.

        Returns:
            A function as :meth:`loss`; a module's buffers follow the network to its device.

        Raises:
            ValueError: if the options do not fit the task or the targets.
        """
        return self.loss

    def predict(self, output: Tensor) -> Tree:
        """Turn an output into what a user wants to know, V entries in every tensor."""
        return output

    def quantities(self) -> dict[str, Quantity]:
        """Say how metrics are shown, by name, in the order of their importance."""
        names = [str(name) for name in self.metrics()]
        names.sort(key=lambda name: name != self.primary_metric)
        return {name: Quantity(name.replace("_", " ")) for name in names}

    def evaluation_quantities(self) -> dict[str, Quantity]:
        """Say how :meth:`evaluation_metrics` are shown; here, those of :meth:`quantities`."""
        return self.quantities()

    def describe(self, predictions: Tree) -> list[tuple[str, list[Any]]]:
        """Lay predictions out as a table.

        Args:
            predictions: of N samples.

        Returns:
            Title and N entries of each column.
        """
        columns = predictions.flatten(1) if predictions.dim() > 1 else predictions[:, None]
        return [(f"output {i}", column.tolist()) for i, column in enumerate(columns.T)]

    def answers(self, predictions: Tree, target: Tree) -> list[Answer]:
        """Put predictions into words, to be looked at; here, the first column of :meth:`describe`.

        Args:
            predictions: of N samples.
            target: of the same samples.
        """
        (title, entries), *_ = self.describe(predictions)
        return [Answer(f"{title} {_short(entry)}") for entry in entries]

    def describe_target(self, target: Tree) -> list[str]:
        """Put N targets into words; here numbers, and nothing where a sample has several."""
        first, *others = tree_leaves(target)
        if others or first.dim() > 1:
            return [""] * len(first)
        return [_short(entry) for entry in first.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Give the values, plain ones, that :meth:`from_dict` builds the task from."""
        return {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """Build the task from the values of :meth:`to_dict`."""
        return cls(**values)


class StepLoss(nn.Module):
    r"""Loss of a training step, :math:`\sum_v w_v \ell_v`.

    Args:
        losses: gives one loss per view, (V,); or their mean, and is then asked once per subset.
    """

    def __init__(self, losses: Loss) -> None:
        super().__init__()
        self.losses = losses

    def forward(self, output: Tensor, target: Tree, views: Views | None = None) -> Tensor:
        """Weigh the views' losses.

        Args:
            output: of each view, shape (V, num_outputs, ...).
            target: of each view, V entries in every tensor.
            views: their weights; without, all count alike.

        Returns:
            Shape ().

        Raises:
            ValueError: if there are neither as many losses as views, nor one.
        """
        losses = self.losses(output, target)
        if views is None:
            return losses.mean()
        if losses.dim():
            if len(losses) != views.num_views:
                raise ValueError(
                    f"the loss gives shape {tuple(losses.shape)}; expected one per view, "
                    f"({views.num_views},), or their mean, ()"
                )
            # A loss may have parts, of several outputs or of one, that a product would spread out.
            return losses.reshape(len(losses), -1).mean(dim=1).mul(views.weight).sum()
        of_groups = [
            self.losses(output[group.views], map_target(itemgetter(group.views), target))
            * views.weight[group.views].sum()
            for group in views.groups
        ]
        return torch.stack(of_groups).sum()


def forward_and_loss(
    network: Callable[..., Tensor], loss: Callable[..., Tensor], batch: StreamBatch
) -> tuple[Tensor, Tensor]:
    """Run a network on a batch with a target, and take the loss of all of its views.

    Args:
        network: as a :class:`manystream.models.StreamNetwork`.
        loss: from outputs and targets to a loss, (); for more views than the full ones it is given
            these too, as :class:`StepLoss` is.
        batch: the batch.

    Returns:
        The loss, and the output for each sample's full view in the caller's order, (B, ...).
    """
    if batch.views.are_full:
        output = network(batch)
        return loss(output, batch.target), output
    outputs = network(batch, by_view=True)
    return loss(outputs, batch.target_by_view(), batch.views), batch.views.restore(outputs)


def load_task(section: Mapping[str, Any]) -> Task:
    """Build the task that a model file names.

    Args:
        section: ``type``, the task's name, and the values of its :meth:`Task.to_dict`.

    Raises:
        ValueError: if there is no task of that name.
    """
    kinds = {kind.name: kind for kind in _below(Task)}
    name = section["type"]
    if name not in kinds:
        raise ValueError(
            f"the model's task is {name!r}; known are {', '.join(sorted(kinds))}: import the "
            "module that defines it, with that name, before the model is loaded"
        )
    return kinds[name].from_dict({key: v for key, v in section.items() if key != "type"})


def as_float(output: Tensor) -> Tensor:
    """Widen half precision to float32, in which losses are taken."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _short(entry: Any) -> str:
    return f"{entry:.4g}" if isinstance(entry, float) else str(entry)


def _below(kind: Any) -> Iterator[type[Task]]:
    """Yield all classes below one that have a name."""
    for below in kind.__subclasses__():
        if "name" in vars(below):
            yield below
        yield from _below(below)
