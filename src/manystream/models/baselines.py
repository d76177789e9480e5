"""What users compare with: a network whose absent images are filled in, and an ensemble.

Late and early fusion are families, see :mod:`manystream.models.families`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manystream.batch import StreamBatch, read_batch
from manystream.models.network import StreamNetwork
from manystream.presence import Presence


class FilledNetwork(StreamNetwork):
    """A network that always gets every stream: absent images are filled in.

    Whatever it is told to be absent, the network inside sees every sample with all of its streams,
    in training and evaluation alike. The fill is a buffer and not trained.

    Args:
        network: the network that gets the filled images; it is trained in place.
        fill: by stream, what stands for an absent image, in the units of the network's inputs:
            (C_m, H, W), or (C_m, 1, 1) for one value in all pixels of a channel. For *mean
            imputation*, :func:`mean_images` of the training set. For *zero filling*, what zeros as
            stored become by the preprocessing: 0 itself is the mean of normalised images.

    Raises:
        ValueError: if the fill is not of these streams or shapes.

    Example:
        >>> from manystream.models import StreamResNet
        >>> net = StreamResNet(widths=(4, 4, 4, 4), in_channels={"rgb": 3, "depth": 1},
        ...                    num_classes=5)
        >>> fill = {"rgb": torch.full((3, 1, 1), -2.0), "depth": torch.zeros(1, 1, 1)}
        >>> FilledNetwork(net, fill)({"depth": torch.zeros(2, 1, 32, 32)}).shape
        torch.Size([2, 5])
    """

    def __init__(self, network: StreamNetwork, fill: Mapping[str, Tensor]) -> None:
        super().__init__(network.in_channels, network.num_classes)
        _check_fill(fill, self.in_channels)
        self.network = network
        self._memory = network.memory
        for m, name in enumerate(self.stream_names):
            self.register_buffer(f"fill_{m}", fill[name].detach().clone())

    def forward_batch(self, batch: StreamBatch) -> Tensor:
        """Logits of the batch's views, each seen with every stream, shape (V, num_classes)."""
        filled = tuple(self._filled(batch, m) for m in range(self.num_streams))
        present = Presence.all_present(batch.views.num_views, self.num_streams)
        return self.network.forward_batch(StreamBatch(filled, present))

    def _filled(self, batch: StreamBatch, stream: int) -> Tensor:
        """Give a stream's image of each view, or what stands for it, shape (V, C_m, H, W)."""
        rows, fill = batch.streams[stream], self.get_buffer(f"fill_{stream}")
        if fill.shape[1:] not in ((1, 1), rows.shape[2:]):
            raise ValueError(
                f"images of stream {self.stream_names[stream]!r} are {tuple(rows.shape[2:])}, and "
                f"what fills it in is {tuple(fill.shape[1:])}; expected one size"
            )
        filled = torch.empty(
            (batch.views.num_views, *rows.shape[1:]),
            dtype=rows.dtype,
            device=rows.device,
            memory_format=torch.channels_last,
        ).copy_(fill)
        for run in batch.views.entering(stream):
            filled[run.views] = rows[run.rows]
        return filled


class Ensemble(StreamNetwork):
    r"""Classifiers of one stream each, whose probabilities are averaged over the streams there are.

    .. math::
        y_v = \log \frac{1}{|S_v|} \sum_{m \in S_v} \mathrm{softmax}(f_m(x_m))

    for a view v with the streams :math:`S_v`; the softmax of these logits is that average.

    Args:
        networks: a network for each stream, in the order of the inputs.

    Raises:
        ValueError: if there is none, one has several streams, two have the same, or they differ in
            classes.

    Example:
        >>> from manystream.models import StreamResNet
        >>> small = {"family": "single_stream", "widths": (4, 4, 4, 4), "num_classes": 5}
        >>> nets = [StreamResNet(in_channels={"rgb": 3}, **small),
        ...         StreamResNet(in_channels={"depth": 1}, **small)]
        >>> probabilities = Ensemble(nets)({"depth": torch.zeros(2, 1, 32, 32)}).exp()
        >>> torch.allclose(probabilities.sum(dim=1), torch.ones(2))
        True
    """

    def __init__(self, networks: Sequence[StreamNetwork]) -> None:
        _check_members(networks)
        in_channels = {name: c for net in networks for name, c in net.in_channels.items()}
        super().__init__(in_channels, networks[0].num_classes)
        self.streams = nn.ModuleList(networks)
        self._memory = networks[0].memory

    def forward_batch(self, batch: StreamBatch) -> Tensor:
        """Logarithms of the averaged probabilities of the views, shape (V, num_classes)."""
        views, placed = batch.views, []
        for m, (network, x) in enumerate(zip(self.streams, batch.streams, strict=True)):
            logits: Tensor = network(StreamBatch((x,), Presence.all_present(len(x), 1)))
            of_rows = logits.log_softmax(dim=1)
            of_views = of_rows.new_full((views.num_views, self.num_classes), -math.inf)
            for run in views.entering(m):
                of_views[run.views] = of_rows[run.rows]
            placed.append(of_views)
        count = placed[0].new_empty(views.num_views, 1)
        for group in views.groups:
            count[group.views] = group.subset.bit_count()
        summed: Tensor = torch.stack(placed).logsumexp(dim=0)
        return summed - count.log()


def mean_images(loader: Iterable[Any], in_channels: Mapping[str, int]) -> dict[str, Tensor]:
    """Average the images of each stream pixel by pixel, over the samples that have it.

    Args:
        loader: batches as :func:`manystream.batch.read_batch` takes them, of images of one size;
            each is read once.
        in_channels: name and channels of the streams, in order.

    Returns:
        By stream, shape (C_m, H, W), float32.

    Raises:
        ValueError: if there is no image of a stream, or a batch does not fit.

    Example:
        >>> mean_images([[torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)]], {"depth": 1})
        {'depth': tensor([[[1.5000]]])}
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(in_channels, 0)
    for batch in loader:
        for name, rows in zip(in_channels, read_batch(batch, in_channels).streams, strict=True):
            if len(rows):
                counts[name] += len(rows)
                of_batch = rows.float().sum(dim=0).cpu().double()
                sums[name] = sums[name] + of_batch if name in sums else of_batch
    missing = [name for name in in_channels if name not in sums]
    if missing:
        raise ValueError(f"the loader has no image of {', '.join(missing)}; expected one or more")
    return {name: (sums[name] / count).float() for name, count in counts.items()}


def _check_fill(fill: Mapping[str, Tensor], in_channels: Mapping[str, int]) -> None:
    if fill.keys() != in_channels.keys():
        raise ValueError(
            f"fill is of streams {', '.join(fill) or 'none'}; the network's streams are "
            f"{', '.join(in_channels)}"
        )
    for name, value in fill.items():
        if value.dim() != 3 or len(value) != in_channels[name]:
            raise ValueError(
                f"fill of stream {name!r} has shape {tuple(value.shape)}; expected "
                f"({in_channels[name]}, H, W), or ({in_channels[name]}, 1, 1) for all pixels"
            )


def _check_members(networks: Sequence[StreamNetwork]) -> None:
    names = [name for network in networks for name in network.stream_names]
    if not networks or len(names) > len(networks) or len(set(names)) < len(names):
        raise ValueError(
            f"the networks' streams are {', '.join(names) or 'none'}; expected one or more "
            "networks of one stream each, all of different streams"
        )
    classes = [network.num_classes for network in networks]
    if len(set(classes)) > 1:
        raise ValueError(f"the networks have {classes} classes; expected the same number")
