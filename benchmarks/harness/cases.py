"""What is measured: a network, a way to run it, and a batch."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

import manystream as ms
from harness.baselines import BASELINES, COMPILED
from manystream.models import StreamNetwork
from manystream.models.memory_modes import MemoryMode

Precision = Literal["fp32", "tf32", "bf16"]
Seen = Literal["full", "subsets", "repeated"]

MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)
NUM_CLASSES = 19
STREAMS = {"rgb": 3, "depth": 1}


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: a memory mode, or one of ``BASELINES``.
        family: how the streams are mixed.
        depth: layers of the ResNet.
        width: multiplier of its widths.
        streams: channels of each stream by name.
        batch_size: samples B.
        image_size: height and width in pixels.
        blanked: share of samples that lack one of their streams, each stream in turn.
        seen: with which of its streams a sample is seen: ``"full"`` with all that it has;
            ``"subsets"`` with each of their subsets too; ``"repeated"`` so that each subset is a
            sample of its own.
        subset_norms: whether the integrated pathway has a norm for every subset.
        precision: ``"bf16"`` is autocast; ``"tf32"`` is float32 with TF32 products.
        device: where to measure.
        steps: steps to time, or to vary.
        graphs: whether CUDA graphs replay the step.
        varying: instead of timing one batch, draw who is present anew in every step, and compare
            reserved with allocated memory.
        expandable: whether the allocator uses expandable segments.
        timeline: whether to follow the memory through the step.

    Raises:
        ValueError: if a value is out of its range.
    """

    name: str = "fast"
    family: str = "li_net3"
    depth: int = 18
    width: float = 1.0
    streams: dict[str, int] = field(default_factory=lambda: dict(STREAMS))
    batch_size: int = 32
    image_size: tuple[int, int] = (224, 224)
    blanked: float = 0.2
    seen: Seen = "full"
    subset_norms: bool = False
    precision: Precision = "bf16"
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    steps: int = 50
    graphs: bool = False
    varying: bool = False
    expandable: bool = False
    timeline: bool = False

    def __post_init__(self) -> None:
        if self.name not in (*MODES, *BASELINES):
            expected = ", ".join((*MODES, *BASELINES))
            raise ValueError(f"unknown way {self.name!r}; expected one of {expected}")
        if min(self.batch_size, self.steps, *self.image_size) < 1:
            raise ValueError(
                f"batch_size is {self.batch_size}, steps {self.steps}, image_size "
                f"{self.image_size}; expected at least 1 each"
            )
        if not 0 <= self.blanked <= 1:
            raise ValueError(f"blanked is {self.blanked}; expected a share from 0 to 1")
        if self.blanked > 0 and len(self.streams) < 2:
            raise ValueError(f"blanked is {self.blanked}; the one stream there is must stay: 0")

    @property
    def is_baseline(self) -> bool:
        """Whether it is what users run instead of ours."""
        return self.name in BASELINES


def network_of(case: Case) -> StreamNetwork:
    """Build the network of a case, on its device, in training."""
    network = ms.create_model(
        case.family,
        depth=case.depth,
        width=case.width,
        streams=case.streams,
        num_classes=NUM_CLASSES,
        subset_norms=case.subset_norms,
    ).network
    return network.to(case.device).train()


def modes(case: Case, *, graphs: bool = False) -> list[Case]:
    """Return a case in every memory mode; in graphs too, after each, if they are asked for."""
    found = [replace(case, name=mode, graphs=g) for mode in MODES for g in (False, True)]
    return [each for each in found if graphs or not each.graphs]


def baselines(case: Case, names: Iterable[str] = tuple(BASELINES)) -> list[Case]:
    """Return a case for each of some baselines; generated code is left out on a CPU."""
    on_gpu = case.device.startswith("cuda")
    return [replace(case, name=name) for name in names if on_gpu or name != COMPILED]


def shrunk(case: Case) -> Case:
    """Make a case tiny, to see that it runs."""
    height, width = case.image_size
    return replace(
        case,
        width=0.125,
        batch_size=max(case.batch_size // 8, 2),
        image_size=(height // 4, width // 4),
        steps=2,
    )


def blanked_in_turn(num_samples: int, num_streams: int, blanked: float) -> Tensor:
    """Return who is present, (B, M): the first samples lose stream 0, 1, … in turn."""
    present = torch.ones(num_samples, num_streams, dtype=torch.bool)
    touched = torch.arange(round(blanked * num_samples))
    present[touched, touched % num_streams] = False
    return present


def blanked_by_chance(case: Case, generator: torch.Generator) -> Tensor:
    """Return who is present, (B, M): each sample loses one stream with a probability."""
    num_streams = len(case.streams)
    lost = torch.randint(num_streams, (case.batch_size,), generator=generator)
    touched = torch.rand(case.batch_size, generator=generator) < case.blanked
    return ~(F.one_hot(lost, num_streams).bool() & touched[:, None])


def add_case_options(parser: ArgumentParser) -> None:
    """Add the options that describe a network of one's own."""
    own = parser.add_argument_group(
        "a network of your own",
        "If any of these is given, that network is measured instead of the published ones.",
        argument_default=SUPPRESS,
    )
    default = Case()
    own.add_argument("--family", help=f"how the streams are mixed ({default.family})")
    own.add_argument("--depth", type=int, help=f"layers of the ResNet ({default.depth})")
    own.add_argument("--width", type=float, help=f"multiplier of its widths ({default.width:g})")
    own.add_argument(
        "--streams",
        type=_stream,
        nargs="+",
        metavar="NAME=CHANNELS",
        help="channels of each stream (rgb=3 depth=1)",
    )
    own.add_argument("--batch-size", type=int, help=f"samples ({default.batch_size})")
    own.add_argument(
        "--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels (224 224)"
    )
    own.add_argument(
        "--blanked", type=float, help=f"share of samples that lack a stream ({default.blanked})"
    )
    own.add_argument("--precision", choices=get_args(Precision), help=f"({default.precision})")


def own_case(options: Namespace, base: Case) -> Case | None:
    """Return the case that options describe; None if none of them was given.

    Args:
        options: what a parser with :func:`add_case_options` gave.
        base: all else.

    Raises:
        ValueError: if a value is out of its range, or there is no such network.
    """
    names = ("family", "depth", "width", "streams", "batch_size", "image_size", "blanked")
    given = {n: getattr(options, n) for n in (*names, "precision") if hasattr(options, n)}
    if not given:
        return None
    if "streams" in given:
        given["streams"] = dict(given["streams"])
    if "image_size" in given:
        given["image_size"] = tuple(given["image_size"])
    case = replace(base, **given)
    with torch.device("meta"):  # takes no memory; an error is to come before all work
        network_of(replace(case, device="meta"))
    return case


def _stream(word: str) -> tuple[str, int]:
    name, _, channels = word.partition("=")
    if not name or not channels.isdigit():
        raise ArgumentTypeError(f"{word!r}; expected a name and channels, such as depth=1")
    return name, int(channels)
