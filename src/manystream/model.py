"""What a user holds: a network and its task, with fit, evaluate, predict, save and load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from manystream.batch import Inputs, StreamBatch
from manystream.choices import check_names, names_checked
from manystream.models import StreamNetwork, StreamResNet, load_pretrained_stream, resnet_size
from manystream.models.memory_modes import MemoryMode
from manystream.models.weights.model_file import NoModelFileError, read_model_file, write_model_file
from manystream.tasks import Classification, Task, load_task

if TYPE_CHECKING:
    from manystream.evaluation import (
        ClassTable,
        EvaluationOptions,
        Robustness,
        Showcase,
        Subsets,
    )
    from manystream.training import FitOptions, History

NETWORKS = {"resnet": StreamResNet}
"""Networks that a model file can name."""

_logger = logging.getLogger(__name__)


class StreamModel(nn.Module):
    """A network and its task, which trains, measures, predicts and keeps itself in one file.

    Args:
        network: the network.
        task: what its outputs mean.
        preprocessing: how its images were prepared in training, if known; plain values, kept for
            whoever prepares new ones.
        held_out: the options by which ``manystream train`` held samples out, so that they can be
            found again; None where it did not.

    Raises:
        ValueError: if the network has not as many outputs as the task.
    """

    def __init__(
        self,
        network: StreamNetwork,
        task: Task,
        *,
        preprocessing: dict[str, Any] | None = None,
        held_out: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if network.num_classes != task.num_outputs:
            raise ValueError(
                f"the network has {network.num_classes} outputs; the task takes {task.num_outputs}"
            )
        self.network = network
        self.task = task
        self.preprocessing = preprocessing
        self.held_out = held_out
        self.register_load_state_dict_pre_hook(_take_the_networks_keys)

    @property
    def stream_names(self) -> tuple[str, ...]:
        """Names of the streams, in the order of the inputs."""
        return self.network.stream_names

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, if the task has such and they are known."""
        return getattr(self.task, "classes", None)

    @property
    def memory(self) -> MemoryMode:
        """What a training step keeps; gradients are the same in every mode."""
        return self.network.memory

    @memory.setter
    def memory(self, mode: MemoryMode) -> None:
        self.network.memory = mode

    def forward(
        self,
        inputs: Inputs | StreamBatch,
        present: Tensor | None = None,
        *,
        blanked_mask: Mapping[str, Tensor] | Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Outputs of the network; arguments as :meth:`manystream.models.StreamNetwork.forward`."""
        output: Tensor = self.network(inputs, present, blanked_mask=blanked_mask)
        return output

    def fit(
        self,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        options: FitOptions | None = None,
        *,
        out_dir: str | Path | None = None,
        resume: bool = False,
        **changes: Any,
    ) -> History:
        """Train on a loader; see :func:`manystream.training.fit`.

        Args:
            train_loader: batches ``(stream_0, …, stream_{M-1}, target)``, dicts by stream name
                with ``target`` and optionally ``present``, or :class:`StreamBatch`.
            val_loader: batches to measure after every epoch.
            options: how to train, a :class:`manystream.training.FitOptions`.
            out_dir: folder for checkpoints, logs and the history; without one, nothing is
                written.
            resume: whether to go on with the run in ``out_dir``, called with the same arguments.
            changes: fields of the options by name, for example ``epochs=100``.

        Returns:
            Loss, metrics and dropout probability of every epoch.
        """
        from manystream.training import fit

        return fit(
            self.network,
            self.task,
            train_loader,
            val_loader,
            _with_changes(options, changes, self.fit),
            out_dir=None if out_dir is None else Path(out_dir),
            resume=resume,
        )

    def find_batch_size(
        self,
        loader: Iterable[Any],
        options: FitOptions | None = None,
        *,
        largest: int | None = None,
        **changes: Any,
    ) -> int:
        """Find the largest batch that fits; see :func:`manystream.training.find_batch_size`.

        Args:
            loader: training batches as :meth:`fit` takes them; one is read.
            options: how the model is to be trained.
            largest: no more than this; by default the number of the loader's samples.
            changes: fields of the options by name.

        Returns:
            Samples per batch, with a margin.
        """
        from manystream.training import find_batch_size

        options = _with_changes(options, changes, self.find_batch_size)
        return find_batch_size(self.network, self.task, loader, options, largest=largest)

    def evaluate(
        self, loader: Iterable[Any], *, blanked_streams: Collection[str] = (), **arguments: Any
    ) -> dict[str, float]:
        """Measure on a loader, with streams taken away; see :func:`manystream.evaluation.evaluate`.

        Args:
            loader: batches as :meth:`fit` takes them.
            blanked_streams: names of streams that every sample is to lack.
            arguments: further ones of that function.

        Returns:
            ``loss``, the task's metrics and ``num_samples``.
        """
        from manystream.evaluation import evaluate

        return evaluate(
            self.network, self.task, loader, blanked_streams=blanked_streams, **arguments
        )

    def evaluate_subsets(self, loader: Iterable[Any], **arguments: Any) -> Subsets:
        """Measure every subset of the streams on the same samples, from one pass of each stream.

        Args:
            loader: batches as :meth:`fit` takes them.
            arguments: of :func:`manystream.evaluation.evaluate_subsets`.

        Returns:
            What :meth:`evaluate` gives, by the streams that are left; beside it, each subset on all
            samples that have its streams.
        """
        from manystream.evaluation import evaluate_subsets

        return evaluate_subsets(self.network, self.task, loader, **arguments)

    def evaluate_conditions(
        self, loader: Iterable[Any], options: EvaluationOptions | None = None, **arguments: Any
    ) -> Robustness:
        """Measure with failing sensors; see :func:`manystream.evaluation.evaluate_conditions`.

        Args:
            loader: batches as :meth:`fit` takes them.
            options: rates of loss, levels of noise and darkness.
            arguments: further ones of that function.

        Returns:
            Measurements for every subset of the streams, for streams lost at random, and for noise
            and darkness on one stream.
        """
        from manystream.evaluation import evaluate_conditions

        arguments.setdefault("preprocessing", self.preprocessing)
        return evaluate_conditions(self.network, self.task, loader, options, **arguments)

    def evaluate_classes(self, loader: Iterable[Any], **arguments: Any) -> ClassTable:
        """Accuracy of every class, and the confusion matrix.

        Args:
            loader: batches as :meth:`fit` takes them.
            arguments: of :func:`manystream.evaluation.evaluate_classes`.
        """
        from manystream.evaluation import evaluate_classes

        return evaluate_classes(self.network, self.task, loader, **arguments)

    def show_samples(self, loader: Iterable[Any], **arguments: Any) -> Showcase:
        """Ask about a loader's first samples with every subset of the streams, for a report.

        Args:
            loader: batches as :meth:`fit` takes them.
            arguments: of :func:`manystream.evaluation.show_samples`.
        """
        from manystream.evaluation import show_samples

        arguments.setdefault("preprocessing", self.preprocessing)
        return show_samples(self.network, self.task, loader, **arguments)

    def predict(self, loader: Iterable[Any], **arguments: Any) -> Any:
        """Predictions on a loader, in its order; class probabilities are (N, num_classes).

        Args:
            loader: batches as :meth:`fit` takes them; targets are not needed.
            arguments: of :func:`manystream.evaluation.predict`.
        """
        from manystream.evaluation import predict

        return predict(self.network, self.task, loader, **arguments)

    def save(self, path: str | Path) -> None:
        """Write weights, and what network, task and data they belong to, into one safetensors file.

        Raises:
            ValueError: if the network does not say how it is built.
        """
        sections = {
            "network": self.network.to_dict(),
            "task": {"type": self.task.name, **self.task.to_dict()},
            "preprocessing": self.preprocessing,
            "held_out": self.held_out,
        }
        write_model_file(Path(path), sections, self.network.state_dict())


@names_checked
def create_model(
    family: str = "li_net3",
    *,
    depth: int = 18,
    streams: Mapping[str, int] | Sequence[int],
    num_classes: int | None = None,
    task: Task | None = None,
    width: float = 1.0,
    dropout: float = 0.0,
    subset_norms: bool = False,
    memory: MemoryMode = "fast",
    pretrained: Mapping[str, str | Path | Mapping[str, Any]] | None = None,
) -> StreamModel:
    """Build a network of several image streams, and its task.

    Args:
        family: how the streams are mixed; see ``models.FAMILIES``.
        depth: 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
        streams: channels of each stream by name, for example ``{"rgb": 3, "depth": 1}``.
        num_classes: number of classes; short for ``task=Classification(num_classes)``.
        task: what is learned, for example ``ms.tasks.Classification(classes=["bed", "desk"])``.
        width: multiplier of the widths 64, 128, 256, 512.
        dropout: probability of dropping a feature before the head.
        subset_norms: whether the integrated pathway has a batch norm for every subset of the
            streams, for training with ``subsets``; of the families only ``li_net3`` can have it.
        memory: what a training step keeps, ``"fast"``, ``"balanced"``, ``"lean"`` or ``"min"``, see
            :mod:`manystream.models.memory_modes`; gradients are the same in all.
        pretrained: weights of an ordinary ResNet for some streams, a file or a state dict with
            torchvision's names; see :func:`manystream.models.load_pretrained_stream`. What was
            adapted or left aside is logged.

    Raises:
        ValueError: if an argument is outside of what is named here.

    Example:
        >>> import torch
        >>> model = create_model(streams={"rgb": 3, "depth": 1}, num_classes=5, width=0.125)
        >>> model({"rgb": torch.zeros(2, 3, 64, 64)}).shape
        torch.Size([2, 5])
    """
    if (num_classes is None) == (task is None):
        raise ValueError("expected either num_classes or a task")
    task = task or Classification(num_classes)
    network = StreamResNet(
        **resnet_size(depth, width),
        family=family,
        in_channels=streams,
        num_classes=task.num_outputs,
        dropout=dropout,
        subset_norms=subset_norms,
        memory=memory,
    )
    pretrained = {} if pretrained is None else pretrained
    if not isinstance(pretrained, Mapping):
        raise ValueError(
            f"pretrained is {pretrained!r}; expected weights by stream, for example "
            'pretrained={"rgb": "resnet18.pth"}'
        )
    for stream, source in pretrained.items():
        _logger.warning("stream %r: %s", stream, load_pretrained_stream(network, stream, source))
    return StreamModel(network, task)


def load_model(path: str | Path) -> StreamModel:
    """Load what :meth:`StreamModel.save` wrote.

    Args:
        path: a safetensors file.

    Raises:
        ValueError: if the file is not one of ours, or is damaged, or its task is unknown.
    """
    described, state = read_model_file(Path(path))
    try:
        sections = _sections(described)
        return StreamModel(
            _network(sections["network"], state),
            load_task(sections["task"]),
            preprocessing=sections["preprocessing"],
            held_out=sections.get("held_out"),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise NoModelFileError(Path(path), error) from error


def _with_changes(
    options: FitOptions | None, changes: Mapping[str, Any], method: Callable[..., Any]
) -> FitOptions:
    """Options with some fields changed by name, as a method was called with.

    Raises:
        TypeError: if there is no field, nor an argument of the method, of a name.
    """
    from manystream.training import FitOptions

    known = [field.name for field in fields(FitOptions)] + list(signature(method).parameters)
    check_names(changes, known, method.__name__)
    return replace(options, **changes) if options else FitOptions(**changes)


def _network(section: Mapping[str, Any], state: Mapping[str, Tensor]) -> StreamNetwork:
    """Build the network that a section describes, and give it its weights."""
    layout = {name: value for name, value in section.items() if name != "type"}
    network = NETWORKS[section["type"]](**layout)
    network.to(next(t.dtype for t in state.values() if t.is_floating_point()))
    network.load_state_dict(state)
    return network


def _sections(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the sections of a file; those before there were such held a ResNet that classifies."""
    if "layout" not in described:
        return described
    layout = described["layout"]
    task = {"num_classes": layout["num_classes"], "classes": described["classes"]}
    return {
        **described,
        "network": {"type": "resnet", **layout},
        "task": {"type": Classification.name, **task},
    }


def _take_the_networks_keys(
    model: StreamModel, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Take the state dict of a bare network for that of the model's."""
    own = model.network.state_dict().keys()
    for key in [key for key in state if key.removeprefix(prefix) in own]:
        state[f"{prefix}network.{key.removeprefix(prefix)}"] = state.pop(key)
