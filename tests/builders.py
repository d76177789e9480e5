"""Small networks, images and presence patterns that the tests share."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from manystream.batch import StreamBatch
from manystream.layers import LinearIntegration, ScalarIntegration
from manystream.models import StreamResNet
from manystream.presence import Presence

CHANNELS = (3, 1, 2, 1)
"""Channels of the streams of a small network."""

WIDTHS = (3, 4, 5, 6)

INTEGRATED_FAMILIES = ("li_net3", "li_net3_soma", "direct_mixing_conv")
"""The families with an integrated pathway."""


def mask_of(words: str) -> Tensor:
    """A presence mask, one word per sample: ``"11 10"`` is [[True, True], [True, False]]."""
    return torch.tensor([[digit == "1" for digit in word] for word in words.split()])


def words_of(num_streams: int) -> st.SearchStrategy[str]:
    """The streams of one sample, at least one."""
    return st.integers(1, 2**num_streams - 1).map(lambda n: f"{n:0{num_streams}b}")


def presences(
    min_streams: int = 1, max_streams: int = 4, max_samples: int = 6
) -> st.SearchStrategy[str]:
    """Any batch whose samples have at least one stream each, written as for :func:`mask_of`."""

    def batches(num_streams: int) -> st.SearchStrategy[str]:
        samples = st.lists(words_of(num_streams), min_size=1, max_size=max_samples)
        return samples.map(" ".join)

    return st.integers(min_streams, max_streams).flatmap(batches)


def random_images(
    mask: Tensor,
    channels: Sequence[int] = CHANNELS,
    size: tuple[int, int] = (33, 41),
    dtype: torch.dtype = torch.float64,
    seed: int = 1,
) -> list[Tensor]:
    """Full batches of noise for each stream of a mask, shape (B, C_m, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(len(mask), c, *size, dtype=dtype, generator=generator)
        for c in channels[: mask.shape[1]]
    ]


def with_absent(images: Sequence[Tensor], mask: Tensor, value: float) -> list[Tensor]:
    """Copies of the images in which every absent one is filled with a value."""
    return [x.masked_fill(~mask[:, m].view(-1, 1, 1, 1), value) for m, x in enumerate(images)]


def compact_batch(
    mask: Tensor,
    channels: int | Sequence[int] = CHANNELS,
    size: tuple[int, int] = (5, 7),
    integrated_channels: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> StreamBatch:
    """A batch of noise at a layer's input; with one number, all streams have those channels."""
    channels = [channels] * mask.shape[1] if isinstance(channels, int) else channels
    batch = StreamBatch.from_full(
        random_images(mask, channels, size, dtype), Presence.from_mask(mask)
    )
    if integrated_channels is None:
        return batch
    generator = torch.Generator().manual_seed(2)
    integrated = torch.randn(
        len(mask), integrated_channels, *size, dtype=dtype, generator=generator
    )
    return StreamBatch(batch.streams, batch.presence, integrated)


def small_resnet(
    num_streams: int = 2,
    block: str = "basic",
    layers: Sequence[int] = (1, 1, 1, 1),
    *,
    family: str = "li_net3",
    dropout: float = 0.0,
    subset_norms: bool = False,
    dtype: torch.dtype = torch.float64,
) -> StreamResNet:
    """A tiny network of 5 classes with nothing at a special value; see :func:`randomise`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = StreamResNet(
            family=family,
            block=block,
            layers=layers,
            widths=WIDTHS,
            in_channels=CHANNELS[:num_streams],
            num_classes=5,
            dropout=dropout,
            subset_norms=subset_norms,
        ).to(dtype)
        randomise(model)
    return model


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Move norms and mixing weights off their symmetric initial values, which hide mistakes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, LinearIntegration):
            for weight in module.stream_weights:
                weight.normal_(0, weight.shape[1] ** -0.5)
        if isinstance(module, ScalarIntegration):
            for m, scalar in enumerate(module.stream_scalars):
                scalar.uniform_(0.5, 1.5).mul_((-1) ** m)
            if module.integrated_scalar is not None:
                module.integrated_scalar.uniform_(0.2, 0.8)
