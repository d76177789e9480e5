import contextlib
import os
import pickle
import re
from collections import OrderedDict
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from manystream.cli import main
from manystream.models.weights.state_dicts import read_state_dict
from tests.models.weights.originals import synthetic_checkpoint

STATE = {"conv1.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.tensor([1, 2])}


def assert_same(read: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> None:
    assert list(read) == list(expected)
    for key, tensor in read.items():
        assert tensor.dtype == expected[key].dtype
        assert torch.equal(tensor, expected[key])


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_mapping(name: str, prefix: str) -> None:
    state = {f"{prefix}{key}": t for key, t in STATE.items()}
    assert_same(read_state_dict(state))
    assert_same(read_state_dict(OrderedDict(state)))
    assert_same(read_state_dict(MappingProxyType(state)))
    assert_same(read_state_dict({"epoch": 3, "optimizer": {"state": {}}, name: state}))
    # As written by a trainer whose model keeps a whole checkpoint.
    assert_same(read_state_dict({"state_dict": {"model": state}}))


def test_a_mapping_gives_its_own_tensors() -> None:
    assert all(read_state_dict(STATE)[key] is tensor for key, tensor in STATE.items())


def test_a_prefix_of_some_keys_only_is_a_name() -> None:
    state = {"module.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    assert_same(read_state_dict(state), state)


def test_only_one_wrapper_is_taken_off() -> None:
    state = {"module.module.weight": torch.ones(1)}
    assert_same(read_state_dict(state), {"module.weight": torch.ones(1)})


def test_a_tensor_named_like_a_nest_is_a_tensor() -> None:
    state = {"model": torch.ones(2), "state_dict": torch.ones(3)}
    assert_same(read_state_dict(state), state)


def test_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    for source in (path, str(path)):
        assert_same(dict(sorted(read_state_dict(source).items())))


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "pth.tar", ""])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file(suffix: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    content = {"epoch": 7, "lr": [0.1, None, True], "state_dict": OrderedDict(STATE)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for source in (path, str(path)):
        assert_same(read_state_dict(source))


def test_parameters_are_tensors(tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 3)
    path = tmp_path / "weights.pth"
    torch.save(dict(linear.named_parameters()), path)
    assert_same(read_state_dict(path), {k: t.detach() for k, t in linear.named_parameters()})


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "oldest protocol"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_code_is_refused_and_does_not_run(
    form: str, nested: bool, suffix: str, tmp_path: Path
) -> None:
    proof, path = tmp_path / "it_ran", tmp_path / f"weights.{suffix}"
    content: Any = {"state_dict": {**STATE, "x": Evil(proof)}} if nested else Evil(proof)
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        bare = {"x": Evil(proof)} if nested else Evil(proof)
        path.write_bytes(pickle.dumps(bare, protocol=0 if form == "oldest protocol" else 4))
    with pytest.raises(ValueError, match=re.escape(str(path))) as refused:
        read_state_dict(path)
    assert not proof.exists()
    if form in ("zip", "legacy") and suffix == "pth":
        assert "refused" in str(refused.value)
        assert "would run code" in str(refused.value)
    # The trap is a real one.
    if suffix == "pth":
        with path.open("rb") as file:
            if form in ("bare pickle", "oldest protocol"):
                pickle.load(file)
            else:
                torch.load(file, weights_only=False)
        assert proof.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x00", b"hello", b"\x80\x04", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)),
        *(bytes(4096), bytes(range(256)) * 8, b"\xff" * 64, b"{}", b"(dp0\n.", b"ustar" * 99),
    ],
)
def test_files_that_are_nothing(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_state_dict(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_cut_anywhere(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7 if not legacy else 3):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_state_dict(path)


def test_a_safetensors_file_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_state_dict(path)


def test_a_file_of_the_other_kind(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_file(STATE, path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_state_dict(path)
    path = tmp_path / "weights.safetensors"
    torch.save(STATE, path)
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", ""])
def test_no_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match=re.escape(f"no checkpoint at {path}")):
        read_state_dict(path)
    with pytest.raises(ValueError, match=re.escape(f"no checkpoint at {path}")):
        read_state_dict(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no state dict; expected tensors by key"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"epoch": 3}, "'epoch' is int; expected tensors by key"),
        ({**STATE, "epoch": 3}, "'epoch' is int"),
        ({"state_dict": {**STATE, "note": "x"}}, "'note' is str"),
        ({"weights": STATE}, "'weights' is dict"),
        ({"state_dict": [1, 2]}, "'state_dict' is list"),
        ({0: torch.ones(1)}, "0"),
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_no_state_dict(content: Any, message: str, from_file: bool, tmp_path: Path) -> None:
    source: Any = content
    if from_file:
        source = tmp_path / "weights.pth"
        torch.save(content, source)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        read_state_dict(source)
    assert (str(source) if from_file else "the mapping") in str(refused.value)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), "text", None, 3])
def test_a_torch_file_of_something_else(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match="holds no state dict; expected tensors by key"):
        read_state_dict(path)


def test_a_flipped_bit_of_a_torch_file_never_gives_other_tensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    whole = path.read_bytes()
    for place, bit in product(range(len(whole)), (1, 16)):
        flipped = bytearray(whole)
        flipped[place] ^= bit
        path.write_bytes(flipped)
        with contextlib.suppress(ValueError):
            assert_same(read_state_dict(path))


def test_a_torch_file_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_state_dict(path))


def test_a_damaged_checkpoint_is_not_converted(tmp_path: Path, capsys) -> None:
    path = tmp_path / "old.pth"
    torch.save({"state_dict": synthetic_checkpoint("li_net3")}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    words = ["convert", "--checkpoint", str(path), "--out", str(tmp_path / "new.safetensors")]
    assert main(words) == 2
    assert f"{path} is damaged: " in capsys.readouterr().err
