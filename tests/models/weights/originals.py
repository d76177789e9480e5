"""What the original implementation computed, and checkpoints in its names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manystream.models.weights.original import original_key
from tests.builders import small_resnet

REFERENCE = Path(__file__).parents[4] / "shared" / "reference"
FILES = sorted(REFERENCE.glob("*.safetensors"))

REFERENCE_FILES = [pytest.param(path, id=path.stem) for path in FILES] or [
    pytest.param(
        None,
        marks=pytest.mark.skip(reason=f"the original's recorded outputs are not at {REFERENCE}"),
    )
]


def read_reference(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration, and every recorded tensor by its name in the file."""
    from safetensors.torch import load_file

    return json.loads(path.with_suffix(".json").read_text()), load_file(path)


def part(recorded: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, by the rest of its name."""
    return {key.removeprefix(prefix): t for key, t in recorded.items() if key.startswith(prefix)}


def real_checkpoint(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The recorded state, and what a real checkpoint has besides: tensors that predict nothing."""
    state = part(recorded, "state/")
    head = {"fc_streams.0.weight": state["fc.weight"], "fc_streams.0.bias": state["fc.bias"]}
    return {**state, **head, "conv1.integrated_weight": empty_kernel(state)}


def empty_kernel(state: dict[str, Tensor]) -> Tensor:
    """What the first layer of the original has for the integrated input that it lacks."""
    width = state["conv1.stream_weights.0"].shape[0]
    return state["conv1.stream_weights.0"].new_empty(width, 0, 1, 1)


def synthetic_checkpoint(
    family: str = "li_net3", block: str = "basic", dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """A checkpoint of two streams in the original's names and with its extras, head last."""
    network = small_resnet(2, block, family=family, dtype=dtype)
    state = {original_key(key, family): t for key, t in network.state_dict().items()}
    state["conv1.integrated_weight"] = empty_kernel(state)
    if family == "direct_mixing_conv":
        state["conv1.integrated_mixing_scalar"] = torch.tensor(0.2, dtype=dtype)
    for m in (0, 1):
        state[f"fc_streams.{m}.weight"] = state["fc.weight"].clone()
        state[f"fc_streams.{m}.bias"] = state["fc.bias"].clone()
    head = {key: state.pop(key) for key in ("fc.weight", "fc.bias")}
    return {
        key: t.clone(memory_format=torch.contiguous_format) for key, t in {**state, **head}.items()
    }
