"""`manystream convert`: a checkpoint of the original implementation as a model file of ours."""

from __future__ import annotations

from manystream.cli.options import ConvertOptions
from manystream.cli.output import fresh_path, say
from manystream.model import StreamModel
from manystream.models import StreamResNet
from manystream.models.weights.original import read_original
from manystream.tasks import Classification


def convert(options: ConvertOptions) -> None:
    """Read, translate and save."""
    out = fresh_path(options.out)
    checkpoint = read_original(options.checkpoint)
    layout = checkpoint.layout
    if options.streams is not None:
        layout["in_channels"] = _named(options.streams, layout["in_channels"])
    network = StreamResNet(**layout)
    network.to(checkpoint.state["fc.weight"].dtype)
    network.load_state_dict(checkpoint.state)
    out.parent.mkdir(parents=True, exist_ok=True)
    StreamModel(network, Classification(network.num_classes)).save(out)
    described = ", ".join(f"{name}: {value}" for name, value in layout.items())
    say(f"{out}: {described}")
    if checkpoint.left_aside:
        say(f"left aside: {', '.join(checkpoint.left_aside)}")


def _named(names: list[str], channels: list[int]) -> dict[str, int]:
    if len(names) != len(channels) or len(set(names)) != len(names):
        raise ValueError(
            f"--streams names {names}; the checkpoint has {len(channels)} streams of "
            f"{channels} channels, each needs a name of its own"
        )
    return dict(zip(names, channels, strict=True))
