"""A model file: weights, and what is known of them, in one safetensors file with a checksum."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manystream.extras import train_extra
from manystream.files import replacing

_METADATA, _DIGEST = "manystream", "digest"

_FORMAT = 2
"""1, which files do not say, had no digest."""

_logger = logging.getLogger(__name__)


class NoModelFileError(ValueError):
    """A file holds no model of ours, or not what was written."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(
            f"{path} is not a model file of manystream, or it is damaged ({reason}); expected the "
            "model.safetensors that training wrote"
        )


def write_model_file(
    path: Path, sections: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a file; one that was there stays until the new one is whole.

    Args:
        path: the file.
        sections: plain values by name.
        tensors: weights and buffers by name, on any device.

    Raises:
        OSError: if the disk does not take it.
    """
    with train_extra():
        from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format": _FORMAT, **sections})
    metadata = {_METADATA: text, _DIGEST: content_digest(text, state)}
    with replacing(path) as partial:
        # Not save_file: what that writes only the owner may read, whatever the umask says.
        partial.write_bytes(save(state, metadata))


def read_model_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the sections and the tensors of a file.

    Raises:
        NoModelFileError: if there is something else in it, or it is damaged.
        ValueError: if there is no file.
    """
    if not path.is_file():
        raise ValueError(f"no model file at {path}; expected a model.safetensors")
    metadata, tensors = _read(path)
    if _METADATA not in metadata:
        raise NoModelFileError(path, "it does not describe a network")
    text = metadata[_METADATA]
    try:
        sections = json.loads(text)
    except ValueError as error:
        raise NoModelFileError(path, error) from error
    if not isinstance(sections, dict):
        raise NoModelFileError(path, "it does not describe a network")
    if "format" not in sections and _DIGEST not in metadata:
        _logger.warning("%s has no checksum, so damage is not seen; save it again", path)
    elif metadata.get(_DIGEST) != content_digest(text, tensors):
        raise NoModelFileError(path, "its checksum does not match")
    elif sections["format"] != _FORMAT:
        raise NoModelFileError(path, f"its format is {sections['format']}, not {_FORMAT}")
    return sections, tensors


def content_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of tensors' names, dtypes, shapes and bytes, in hexadecimal.

    Args:
        text: what describes the tensors.
        tensors: contiguous, on the CPU.
    """
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with train_extra():
        from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # a damaged header raises whatever its bytes lead to
        raise NoModelFileError(path, error) from error
