"""Open other people's checkpoints without running what is inside them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor

from manystream.extras import train_extra

_NESTED = ("state_dict", "model_state_dict", "model")
_ZIP, _FOLDER = b"PK\x03\x04", 0x10
_WRAPPER = "module."  # torch.nn.DataParallel and DistributedDataParallel


def read_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Get a state dict from a file or a mapping.

    Args:
        source: a ``.safetensors`` file, a file of ``torch.save``, or a mapping; the state dict
            itself or a training checkpoint that holds it under ``state_dict``,
            ``model_state_dict`` or ``model``. A ``module.`` before every key is taken off.

    Returns:
        Tensors by key, on the CPU where they come from a file.

    Raises:
        ValueError: if the file is missing, damaged, or a pickle that holds more than tensors and
            plain values; or if there is no state dict in it.
    """
    content: Any = source if isinstance(source, Mapping) else _read_file(Path(source))
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{_name(source)} holds no state dict; expected tensors by key")
    foreign = [k for k, t in content.items() if not (isinstance(k, str) and isinstance(t, Tensor))]
    if foreign:
        raise ValueError(
            f"{_name(source)} is no state dict: {foreign[0]!r} is "
            f"{type(content[foreign[0]]).__name__}; expected tensors by key"
        )
    wrapped = all(key.startswith(_WRAPPER) for key in content)
    return {key.removeprefix(_WRAPPER) if wrapped else key: t for key, t in content.items()}


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if damage := zip_damage(path):
        raise ValueError(f"{path} is damaged: {damage}; get the file anew")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is no checkpoint, or a pickle that holds more than tensors "
            f"and would run code; save the state dict alone and load that ({_first_line(error)})"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ValueError(f"{path} is damaged or no checkpoint ({_first_line(error)})") from error


def zip_damage(path: Path) -> str | None:
    """Compare a file of ``torch.save`` with its checksums, which ``torch.load`` does not.

    Returns:
        What is wrong; None if nothing is, or the file is no zip.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return None
    try:
        with ZipFile(path) as content:
            entries = content.infolist()
            # torch.load does not read what is marked as a folder: it gives memory as it is.
            folders = [entry.filename for entry in entries if entry.external_attr & _FOLDER]
            summed = any(entry.CRC for entry in entries)  # They can be switched off.
            damaged = folders[0] if folders else content.testzip() if summed else None
    except Exception as error:  # zipfile's own kinds, zlib's, and whatever damaged sizes lead to
        return _first_line(error)
    return None if damaged is None else f"{damaged} in it is not what its checksum says"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with train_extra():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _name(source: str | Path | Mapping[str, Any]) -> str:
    return "the mapping" if isinstance(source, Mapping) else str(source)
