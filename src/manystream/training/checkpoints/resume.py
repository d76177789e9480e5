"""What a run that is resumed asks of the checkpoint it finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from manystream.models import StreamNetwork
from manystream.training.reports.history import History, HistoryRecorder

_OF_NETWORK = "network."
_SHOWN = 3


def check_same_network(network: StreamNetwork, path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another network.

    Args:
        network: the network to train.
        path: where the checkpoint is.
        content: what is in it.

    Raises:
        ValueError: naming what differs.
    """
    saved, own = _weights(content), network.state_dict()
    differences = [f"{name} is not in this network" for name in saved.keys() - own.keys()]
    differences += [f"{name} is not in the checkpoint" for name in own.keys() - saved.keys()]
    differences += [
        f"{name} is {tuple(saved[name].shape)}, here {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:_SHOWN])
        raise ValueError(
            f"{path} is a checkpoint of another network: {shown} ({len(differences)} differences); "
            "resume with the options that the run was started with"
        )


def finish(network: StreamNetwork, content: Mapping[str, Any]) -> History:
    """Give a network the weights of a run that had ended, and return its history."""
    network.load_state_dict(_weights(content))
    recorder = HistoryRecorder()
    recorder.load_state_dict(content["callbacks"][recorder.state_key])
    return recorder.history


def _weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name.removeprefix(_OF_NETWORK): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(_OF_NETWORK)
    }
