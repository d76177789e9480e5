"""A model file is what was written, or it is refused."""

import hashlib
import json
import os
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import manystream as ms
from manystream.tasks import Classification
from tests.training.builders import tiny_model

OLD = Path(__file__).parent / "saved/model_without_digest.safetensors"
"""Written before files had a digest."""


def saved(path) -> Path:
    task = Classification(classes=["bed", "desk", "sofa"])
    model = tiny_model(widths=(2, 2, 2, 2), task=task)
    model.preprocessing = {"size": [32, 32]}
    model.held_out = {"val_share": 0.3, "split_seed": 7}
    model.save(path)
    return path


def contents(model) -> tuple:
    state = {name: (t.dtype, tuple(t.shape), t.tolist()) for name, t in model.state_dict().items()}
    known = (model.network.layout, model.classes, model.preprocessing, model.held_out)
    return state, json.dumps(known)


def mutations(whole: bytes, count: int, seed: int = 0):
    """The file with one byte changed, one bit flipped, cut off, or longer; half in its header."""
    rng = random.Random(seed)
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(count):
        at = rng.randrange(header if number % 2 else len(whole))
        changed = bytearray(whole)
        kind = rng.choice(["byte", "bit", "digit", "cut", "more", "lost", "doubled"])
        if kind == "byte":
            changed[at] = (changed[at] + rng.randrange(1, 256)) % 256
        elif kind == "bit":
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "digit":
            changed[at] = rng.choice(b'0123456789{}[]",:FIBU')
        elif kind == "cut":
            del changed[at:]
        elif kind == "more":
            changed += bytes(rng.randrange(1, 9))
        elif kind == "lost":
            del changed[at]
        else:
            changed.insert(at, changed[at])
        yield bytes(changed)


def test_no_damage_is_loaded_as_another_network(tmp_path):
    path = saved(tmp_path / "m.safetensors")
    whole, expected = path.read_bytes(), contents(ms.load_model(path))
    refused = 0
    for changed in mutations(whole, 400):
        path.write_bytes(changed)
        try:
            loaded = ms.load_model(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        else:
            assert contents(loaded) == expected
    assert refused > 300


def test_damage_to_a_file_without_a_digest_is_no_traceback(tmp_path):
    path, whole = tmp_path / "m.safetensors", OLD.read_bytes()
    for changed in mutations(whole, 200, seed=1):
        path.write_bytes(changed)
        try:
            ms.load_model(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_a_file_from_before_still_loads(caplog):
    model = ms.load_model(OLD).eval()
    weights = load_file(OLD)
    state = model.network.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert model.classes == ("bed", "desk", "sofa")
    assert model.preprocessing == {
        "size": [32, 32],
        "streams": [{"name": "rgb", "mean": [0.1, 1 / 3]}],
    }
    assert model.held_out == {"val_share": 0.3, "split_seed": 7}
    assert model.network.dropout.p == 0.25
    images = [torch.linspace(-1, 1, 2 * c * 32 * 32).view(2, c, 32, 32) for c in (3, 1)]
    expected = torch.tensor(
        [
            [0.3053310513496399, -0.060459572821855545, -0.0415971577167511],
            [0.3073653280735016, -0.060149453580379486, -0.043557167053222656],
        ]
    )
    torch.testing.assert_close(model(images), expected)
    assert "has no checksum" in caplog.text


def test_saving_a_file_from_before_again_gives_it_a_digest(tmp_path, caplog):
    path = tmp_path / "m.safetensors"
    ms.load_model(OLD).save(path)
    caplog.clear()
    assert contents(ms.load_model(path)) == contents(ms.load_model(OLD))
    assert str(path) not in caplog.text


def rewritten(path, change) -> None:
    """The file with other tensors or metadata, in a header that is right."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def swap_weights(tensors, metadata):
    names = ("layer1.0.conv1.streams.0.weight", "layer1.0.conv1.streams.1.weight")
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]


def transpose(tensors, metadata):
    name = "layer1.0.conv1.streams.0.weight"
    tensors[name] = tensors[name].transpose(0, 1).contiguous()


def reshape(tensors, metadata):
    tensors["fc.weight"] = tensors["fc.weight"].reshape(2, 3)


def reinterpret(tensors, metadata):
    tensors["fc.bias"] = tensors["fc.bias"].view(torch.int32)


def drop_a_tensor(tensors, metadata):
    del tensors["fc.bias"]


def rename_a_class(tensors, metadata):
    metadata["manystream"] = metadata["manystream"].replace("sofa", "safe")


def drop_the_digest(tensors, metadata):
    for name in set(metadata) - {"manystream"}:
        del metadata[name]


@pytest.mark.parametrize(
    "change",
    [swap_weights, transpose, reshape, reinterpret, drop_a_tensor, rename_a_class, drop_the_digest],
)
def test_changes_in_a_whole_file_are_seen(tmp_path, change):
    path = saved(tmp_path / "m.safetensors")
    rewritten(path, change)
    with pytest.raises(ValueError, match=r"m\.safetensors is .*damaged.*checksum"):
        ms.load_model(path)


def other_layout(tensors, metadata):
    metadata["manystream"] = metadata["manystream"].replace('"widths": [2', '"widths": [3')


def unknown_argument(tensors, metadata):
    metadata["manystream"] = metadata["manystream"].replace('"widths"', '"wisths"')


def no_layout(tensors, metadata):
    metadata["manystream"] = "{}"


def a_list(tensors, metadata):
    metadata["manystream"] = "[]"


@pytest.mark.parametrize(
    "change", [drop_a_tensor, reshape, other_layout, unknown_argument, no_layout, a_list]
)
def test_a_file_without_a_digest_that_holds_no_network(tmp_path, change):
    path = tmp_path / "m.safetensors"
    path.write_bytes(OLD.read_bytes())
    rewritten(path, change)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        ms.load_model(path)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_file_may_be_read_by_whom_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = saved(tmp_path / "m.safetensors")
        path.with_suffix(".txt").write_text("as other files")
    finally:
        os.umask(before)
    assert path.stat().st_mode == path.with_suffix(".txt").stat().st_mode
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_two_models_of_one_stem_do_not_meet(tmp_path):
    (tmp_path / "m.partial").write_text("someone's")
    saved(tmp_path / "m.safetensors")
    assert (tmp_path / "m.partial").read_text() == "someone's"
    assert {path.name for path in tmp_path.iterdir()} == {"m.partial", "m.safetensors"}


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = saved(tmp_path / "m.safetensors")
    before = path.read_bytes()

    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_model().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_digest_is_of_names_dtypes_shapes_bytes_and_sections(tmp_path):
    """Told anew from the file's format, so that other programs can, too."""
    path = saved(tmp_path / "m.safetensors")
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    metadata = header.pop("__metadata__")
    dtypes = {"F32": "torch.float32", "I64": "torch.int64"}
    digest = hashlib.sha256(metadata["manystream"].encode())
    for name in sorted(header):
        entry = header[name]
        start, stop = entry["data_offsets"]
        digest.update(f"{name} {dtypes[entry['dtype']]} {tuple(entry['shape'])}".encode())
        digest.update(data[start:stop])
    assert metadata["digest"] == digest.hexdigest()
