import errno
import math
import os
import random
import resource
from collections import namedtuple

import numpy as np
import pytest
import torch

from manystream.training.checkpoints import (
    DamagedStateError,
    random_state,
    read_state,
    set_random_state,
    write_state,
)

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
        "": {},
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_what_is_written_is_read(tmp_path):
    content, path = everything(), tmp_path / "a.ckpt"
    write_state(content, path)
    read = read_state(path)
    assert same(read, content)
    for name in ("channels last", "one by one"):
        assert read[name].stride() == content[name].stride()
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_numbers_of_numpy_become_plain_ones(tmp_path):
    write_state({"lr": [np.float64(0.1)], "epoch": np.int64(3)}, tmp_path / "a.ckpt")
    assert same(read_state(tmp_path / "a.ckpt"), {"lr": [0.1], "epoch": 3})


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "builtins.object"),
        (Pair(1, 2), "Pair"),
        (lambda: None, "lambda"),
        (np.arange(3), r"numpy\.ndarray"),
        (os.system, "posix.system"),
    ],
)
def test_what_would_be_read_by_running_code_is_not_written(value, named, tmp_path):
    path = tmp_path / "a.ckpt"
    whole = written(path)
    with pytest.raises(TypeError, match=rf"a checkpoint holds tensors, .* else: .*{named}"):
        write_state({"callbacks": {"Mine": [0, value]}}, path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_generators_go_on_where_they_were(tmp_path):
    def draw():
        return random.gauss(), np.random.normal(), torch.rand(()).item()  # noqa: NPY002

    before = random_state()
    try:
        draw()  # of two normal numbers, the second is kept
        write_state(random_state(), tmp_path / "a.ckpt")
        expected = draw(), draw()
        draw()
        set_random_state(read_state(tmp_path / "a.ckpt"))
        assert (draw(), draw()) == expected
    finally:
        set_random_state(before)


def written(path):
    write_state({"weights": torch.arange(1000.0), "epoch": 3}, path)
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0, 5, 300, 0.5, -1])
def test_a_torn_file_is_damaged(kept, tmp_path):
    path = tmp_path / "a.ckpt"
    whole = written(path)
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(DamagedStateError, match=r"a.ckpt is damaged"):
        read_state(path)


def test_no_changed_byte_gives_another_state(tmp_path):
    path = tmp_path / "a.ckpt"
    whole, found = written(path), 0
    expected = read_state(path)
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert same(read_state(path), expected), place
        except DamagedStateError:
            found += 1
    assert found > len(whole) / 7 / 2  # the rest stands between the parts


def test_checksums_are_written_where_they_are_switched_off(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.serialization.set_crc32_options(False)
    try:
        whole = written(path)
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    place = whole.index(torch.arange(1000.0).numpy().tobytes()) + 500
    path.write_bytes(whole[:place] + b"!" + whole[place + 1 :])
    with pytest.raises(DamagedStateError, match="is not what its checksum says"):
        read_state(path)


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint at .*a.ckpt"):
        read_state(tmp_path / "a.ckpt")
    torch.save({"fc": torch.ones(1)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model.pth is no checkpoint of a training run"):
        read_state(tmp_path / "model.pth")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    whole = written(path)

    def full(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*a.ckpt: the disk is full; those bef"):
        write_state({"epoch": 4}, path)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_disk_that_really_takes_no_more(tmp_path):
    path = tmp_path / "a.ckpt"
    whole = written(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*a.ckpt: .*; those before it are"):
            write_state({"weights": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
