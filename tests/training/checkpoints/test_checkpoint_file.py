import errno
import json
import math
import os
import resource
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from manystream.training.checkpoints import checkpoint_file
from manystream.training.checkpoints.checkpoint_file import (
    DamagedCheckpointError,
    read_checkpoint,
    write_checkpoint,
)
from manystream.training.checkpoints.nest import put_together, take_apart

Pair = namedtuple("Pair", "a b")


def everything():
    kernel = torch.arange(2.0 * 3 * 5 * 5).view(2, 3, 5, 5)
    shared = torch.arange(6.0)
    return {
        "plain": [None, True, -3, 0.1, "ü", 1e-300],
        "not finite": [math.inf, -math.inf],
        "numbers": {0: {"step": torch.tensor(4.0)}, 1: (1, (2, [3]))},
        "channels last": kernel.to(memory_format=torch.channels_last),
        "one by one": torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last),
        "views of one": [shared[:3], shared[3:], shared],
        "every second": torch.arange(8)[::2],
        "empty": torch.empty(0, 3),
        "types": [
            torch.tensor(True),
            torch.ones(2, dtype=torch.bfloat16),
            torch.get_rng_state(),
            torch.tensor([[1, 2]]),
        ],
        "array": np.arange(3, dtype=np.uint32),
        "": {},
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and (a == b).all()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_what_is_written_is_read(tmp_path):
    content, path = everything(), tmp_path / "a.safetensors"
    write_checkpoint(content, path)
    read = read_checkpoint(path)
    assert same(read, content)
    for name in ("channels last", "one by one"):
        assert read[name].stride() == content[name].stride()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_file_is_safetensors_with_strict_json(tmp_path):
    write_checkpoint({"weights": {"fc": torch.ones(2)}, "x": math.nan}, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["weights/fc"]
        tree = json.loads(file.metadata()["tree"], parse_constant=pytest.fail)
    assert tree["dict"][1] == ["x", {"float": "nan"}]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "builtins.object"),
        ({1, 2}, "builtins.set"),
        (Pair(1, 2), "Pair"),
        (lambda: None, "builtins.function"),
        (torch.float32, "torch.dtype"),
    ],
)
def test_anything_else_is_refused_by_its_path(value, named, tmp_path):
    with pytest.raises(TypeError, match=rf"callbacks/Mine/1 is .*{named}; a checkpoint holds"):
        write_checkpoint({"callbacks": {"Mine": [0, value]}}, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="the state has the key None; expected a string"):
        take_apart({None: 1})


def test_parts_do_not_share_memory():
    _, tensors = take_apart(everything())
    memories = [t.untyped_storage().data_ptr() for t in tensors.values() if t.numel()]
    assert len(set(memories)) == len(memories)


def test_a_tensor_in_a_nest_is_found_by_its_path():
    tree, tensors = take_apart({"a": [{"b": torch.ones(1)}]})
    assert list(tensors) == ["a/0/b"]
    assert same(put_together(tree, {"a/0/b": torch.zeros(1)}), {"a": [{"b": torch.zeros(1)}]})


def written(path):
    write_checkpoint({"weights": torch.arange(1000.0), "epoch": 3}, path)
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0, 5, 300, 0.5, -1])
def test_a_torn_file_is_damaged(kept, tmp_path):
    path = tmp_path / "a.safetensors"
    whole = written(path)
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(DamagedCheckpointError, match=r"a.safetensors is damaged"):
        read_checkpoint(path)


def test_any_changed_byte_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    whole = written(path)
    for place in (whole.index(b"epoch"), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path)


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint at .*a.safetensors"):
        read_checkpoint(tmp_path / "a.safetensors")
    save_file({"fc": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is no checkpoint of a training run"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    whole = written(path)

    def full(tensors, partial, metadata):
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_file, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*a.safetensors: the disk is full; those bef"):
        write_checkpoint({"epoch": 4}, path)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_disk_that_really_takes_no_more(tmp_path):
    path = tmp_path / "a.safetensors"
    whole = written(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*a.safetensors: .*; those before it are"):
            write_checkpoint({"weights": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
