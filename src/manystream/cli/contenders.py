"""Who is compared: a network and its training, for each way to deal with a missing sensor."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from manystream.cli.options import CompareOptions
from manystream.data import SampleTable, TrainingData, loader
from manystream.model import StreamModel, create_model
from manystream.models import FAMILIES
from manystream.tasks import Classification
from manystream.training import FitOptions
from manystream.training.fit import check_against_network, check_fit
from manystream.training.options import dropout_off

_DROPOUT_RATE, _DROPOUT_RAMP = 0.48, 3 / 8
"""Modality dropout if nothing is said of it: the final share of samples that lose streams, and the
ramp's share of the epochs. Our measurements had a ramp of 15 in 40 epochs."""


@dataclass(frozen=True)
class Contender:
    """What is to be trained and compared.

    Attributes:
        name: what it is called in the table.
        family: of its network.
        data: what it is trained on, and measured on.
        fit: how it is trained.
        subset_norms: whether the integrated pathway has a batch norm for every subset.
        fill: what replaces absent images; None leaves them out.
        members: if it is an ensemble, a network of one stream for each; they are trained, not it.
    """

    name: str
    family: str
    data: TrainingData
    fit: FitOptions
    subset_norms: bool = False
    fill: Literal["zero", "mean"] | None = None
    members: tuple[Contender, ...] = ()


def contenders_of(options: CompareOptions, data: TrainingData) -> list[Contender]:
    """List what is to be trained, the ways before the families.

    Raises:
        ValueError: if the data are not such that ways can be compared on them.
    """
    if options.ways:
        _check_data(data)
    contenders = [_way(name, options, data) for name in options.ways or []]
    for family in options.families or []:
        if family == "single_stream":
            contenders += _alone(options, data)
        else:
            fit = options.fit
            if len(data.in_channels) == 1:
                fit = _fit_of_one_stream(fit, *data.in_channels)
            contenders.append(Contender(family, family, data, fit))
    return contenders


def _way(name: str, options: CompareOptions, data: TrainingData) -> Contender:
    family = options.model.family
    fit = replace(options.fit, **dropout_off(), subsets=None, subset_weights={})
    if name == "every_subset":
        subsets, weights = options.fit.subsets or "all", options.fit.subset_weights
        fit = replace(fit, subsets=subsets, subset_weights=weights)
        has_batch_norm = FAMILIES[family].integrated_norm is nn.BatchNorm2d
        return Contender(name, family, data, fit, subset_norms=has_batch_norm)
    if name == "modality_dropout":
        return Contender(name, family, data, _with_dropout(fit, options, len(data.in_channels)))
    if name == "zero_filling":
        return Contender(name, family, data, fit, fill="zero")
    if name == "mean_imputation":
        return Contender(name, family, data, fit, fill="mean")
    if name == "ensemble":
        return Contender(name, "single_stream", data, fit, members=_alone(options, data))
    return Contender(name, name if name in FAMILIES else family, data, fit)


def _with_dropout(fit: FitOptions, options: CompareOptions, num_streams: int) -> FitOptions:
    """Add what the options say of modality dropout, or what is sensible if they say nothing."""
    if options.fit.modality_dropout:
        return replace(fit, **{name: getattr(options.fit, name) for name in dropout_off()})
    return replace(
        fit,
        modality_dropout=True,
        modality_dropout_rate=_DROPOUT_RATE,
        modality_dropout_ramp=round(_DROPOUT_RAMP * fit.epochs),
        modality_dropout_max_blanked=num_streams - 1,  # so that every subset is seen
    )


def _alone(options: CompareOptions, data: TrainingData) -> tuple[Contender, ...]:
    """Give a contender for each stream, on the very samples of the data that have it."""
    return tuple(
        Contender(
            f"{stream} alone",
            "single_stream",
            _only(stream, options, data),
            _fit_of_one_stream(options.fit, stream),
        )
        for stream in data.in_channels
    )


def _only(stream: str, options: CompareOptions, data: TrainingData) -> TrainingData:
    # Opened anew, fewer samples could be split otherwise: the others' validation set trained on.
    number = list(data.in_channels).index(stream)
    preprocessing = replace(
        data.preprocessing,
        streams=(data.preprocessing.streams[number],),
        statistics=(data.preprocessing.statistics[number],),
    )
    seed, accelerator = options.fit.seed, options.fit.accelerator
    train, val = (
        loader(
            table.with_streams([stream]),
            preprocessing,
            options.data,
            train=is_training,
            seed=seed,
            accelerator=accelerator,
        )
        for table, is_training in ((table_of(data.train), True), (table_of(data.val), False))
    )
    return replace(data, train=train, val=val, preprocessing=preprocessing)


def _fit_of_one_stream(fit: FitOptions, stream: str) -> FitOptions:
    """Take out what is about several streams: there is no other to survive on."""
    multipliers = fit.learning_rate_multipliers
    kept = {name: x for name, x in multipliers.items() if name in (stream, "shared", "stem")}
    return replace(
        fit,
        **dropout_off(),
        subsets=None,
        subset_weights={},
        subset_accuracy_every=0,
        freeze_patience=None,
        balance_penalty=0.0,
        learning_rate_multipliers=kept,
    )


def _check_data(data: TrainingData) -> None:
    streams = ", ".join(data.in_channels)
    if len(data.in_channels) < 2:
        raise ValueError(
            f"the data have one stream, {streams}; expected two or more, of which one can be "
            "missing: name --families to compare networks of one stream"
        )
    if not table_of(data.val).present.all(dim=1).any():
        raise ValueError(
            f"no validation sample has every stream, {streams}, so ways cannot be compared on the "
            "same samples; name --data.streams that some samples have together, or --families"
        )
    counts = table_of(data.train).present.sum(dim=0).tolist()
    for stream, count in zip(data.in_channels, counts, strict=True):
        if count == 0:
            raise ValueError(
                f"no training sample has stream {stream}; leave it out of --data.streams"
            )


def check_contender(contender: Contender, options: CompareOptions) -> None:
    """Refuse what could not be trained, before anything is.

    Raises:
        ValueError: if the options do not fit the network.
    """
    for member in contender.members:
        check_contender(member, options)
    if contender.members:
        return
    with torch.device("meta"):  # takes no memory
        model = create(contender, options)
    check_fit(contender.fit, list(contender.data.in_channels))
    train = contender.data.train
    check_against_network(contender.fit, model.network, model.task, train, has_validation=True)


def create(contender: Contender, options: CompareOptions) -> StreamModel:
    """Build a contender's network, of the size that the options say, and its task."""
    return create_model(
        **asdict(replace(options.model, family=contender.family)),
        streams=contender.data.in_channels,
        task=Classification(classes=contender.data.classes),
        subset_norms=contender.subset_norms,
    )


def table_of(feeding: Any) -> SampleTable:
    """The samples that a loader of ours reads."""
    table: SampleTable = feeding.dataset.source
    return table
