"""The user's model: a network with fit, evaluate, predict, save and load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from manystream.choices import check_names, names_checked
from manystream.models import StreamResNet, load_pretrained_stream
from manystream.models.memory_modes import MemoryMode
from manystream.models.model_file import NoModelFileError, read_model_file, write_model_file
from manystream.models.resnet import STAGE_WIDTHS

if TYPE_CHECKING:
    from manystream.training import ClassTable, ConditionOptions, FitOptions, History, Robustness

DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}

_WIDEST = 16  # 8,192 channels at the end; a typing error beyond

_logger = logging.getLogger(__name__)


class StreamClassifier(StreamResNet):
    """A :class:`StreamResNet` that trains, measures, predicts and keeps itself in one file.

    Args:
        layout: arguments of :class:`StreamResNet`.

    Attributes:
        layout: the same, to build the network again.
        classes: names of the classes, if known.
        preprocessing: how its images were prepared in training, if known; plain values, kept for
            whoever prepares new ones.
        held_out: the options by which ``manystream train`` held samples out, so that they can be
            found again; None where it did not.
    """

    def __init__(self, **layout: Any) -> None:
        super().__init__(**layout)
        self.layout = {**layout, "in_channels": self.in_channels}
        self.classes: tuple[str, ...] | None = None
        self.preprocessing: dict[str, Any] | None = None
        self.held_out: dict[str, Any] | None = None

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
            Loss, accuracy, mean class accuracy and dropout probability of every epoch.
        """
        from manystream.training import fit

        return fit(
            self,
            train_loader,
            val_loader,
            _with_changes(options, changes, self.fit),
            out_dir=None if out_dir is None else Path(out_dir),
            resume=resume,
        )

    def evaluate(
        self, loader: Iterable[Any], *, blanked_streams: Collection[str] = (), **arguments: Any
    ) -> dict[str, float]:
        """Measure on a loader, with streams taken away; see :func:`manystream.training.evaluate`.

        Args:
            loader: batches as :meth:`fit` takes them.
            blanked_streams: names of streams that every sample is to lack.
            arguments: further ones of :func:`manystream.training.evaluate`.

        Returns:
            ``loss``, ``accuracy``, ``mean_class_accuracy`` and ``num_samples``.
        """
        from manystream.training import evaluate

        return evaluate(self, loader, blanked_streams=blanked_streams, **arguments)

    def evaluate_conditions(
        self, loader: Iterable[Any], options: ConditionOptions | None = None, **arguments: Any
    ) -> Robustness:
        """Measure with failing sensors; see :func:`manystream.training.evaluate_conditions`.

        Args:
            loader: batches as :meth:`fit` takes them.
            options: rates of loss, levels of noise and darkness.
            arguments: further ones of that function.

        Returns:
            Measurements for every subset of the streams, for streams lost at random, and for noise
            and darkness on one stream.
        """
        from manystream.training import evaluate_conditions

        arguments.setdefault("preprocessing", self.preprocessing)
        return evaluate_conditions(self, loader, options, **arguments)

    def evaluate_classes(self, loader: Iterable[Any], **arguments: Any) -> ClassTable:
        """Accuracy of every class, and the confusion matrix.

        Args:
            loader: batches as :meth:`fit` takes them.
            arguments: further ones of :func:`manystream.training.evaluate_classes`.
        """
        from manystream.training import evaluate_classes

        arguments.setdefault("classes", self.classes)
        return evaluate_classes(self, loader, **arguments)

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
        return find_batch_size(self, loader, options, largest=largest)

    def predict(self, loader: Iterable[Any], **arguments: Any) -> Tensor:
        """Class probabilities on a loader, (N, num_classes), in its order.

        Args:
            loader: batches as :meth:`fit` takes them; targets are not needed.
            arguments: of :func:`manystream.training.predict`.
        """
        from manystream.training import predict

        return predict(self, loader, **arguments)

    def save(self, path: str | Path) -> None:
        """Write weights, layout and what is known of the data into one safetensors file."""
        sections = {
            "layout": self.layout,
            "classes": self.classes,
            "preprocessing": self.preprocessing,
            "held_out": self.held_out,
        }
        write_model_file(Path(path), sections, self.state_dict())


@names_checked
def create_model(
    family: str = "li_net3",
    *,
    depth: int = 18,
    streams: Mapping[str, int] | Sequence[int],
    num_classes: int,
    width: float = 1.0,
    dropout: float = 0.0,
    memory: MemoryMode = "fast",
    pretrained: Mapping[str, str | Path | Mapping[str, Any]] | None = None,
) -> StreamClassifier:
    """Build a classifier of several image streams.

    Args:
        family: how the streams are mixed; see ``models.FAMILIES``.
        depth: 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
        streams: channels of each stream by name, for example ``{"rgb": 3, "depth": 1}``.
        num_classes: number of classes.
        width: multiplier of the widths 64, 128, 256, 512, up to 16.
        dropout: probability of dropping a feature before the head.
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
    if depth not in DEPTHS:
        raise ValueError(f"depth is {depth}; expected one of {', '.join(map(str, DEPTHS))}")
    if not 0 < width <= _WIDEST:
        raise ValueError(f"width is {width}; expected a multiplier above 0, up to {_WIDEST}")
    block, layers = DEPTHS[depth]
    model = StreamClassifier(
        family=family,
        block=block,
        layers=layers,
        widths=tuple(max(round(w * width), 1) for w in STAGE_WIDTHS),
        in_channels=streams,
        num_classes=num_classes,
        dropout=dropout,
        memory=memory,
    )
    pretrained = {} if pretrained is None else pretrained
    if not isinstance(pretrained, Mapping):
        raise ValueError(
            f"pretrained is {pretrained!r}; expected weights by stream, for example "
            'pretrained={"rgb": "resnet18.pth"}'
        )
    for stream, source in pretrained.items():
        _logger.warning("stream %r: %s", stream, load_pretrained_stream(model, stream, source))
    return model


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


def load_model(path: str | Path) -> StreamClassifier:
    """Load what :meth:`StreamClassifier.save` wrote.

    Args:
        path: a safetensors file.

    Raises:
        ValueError: if the file is not one of ours, or is damaged.
    """
    sections, state = read_model_file(Path(path))
    try:
        return _build(sections, state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise NoModelFileError(Path(path), error) from error


def _build(sections: Mapping[str, Any], state: Mapping[str, Tensor]) -> StreamClassifier:
    """Make the network that a model file describes."""
    model = StreamClassifier(**sections["layout"])
    model.to(state["fc.weight"].dtype)
    model.load_state_dict(state)
    model.classes = sections["classes"] and tuple(sections["classes"])
    model.preprocessing = sections["preprocessing"]
    model.held_out = sections.get("held_out")
    return model
