"""What was seen of files is kept in the user's cache folder, and nothing in the data's."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manystream.data import manifest
from manystream.data.folder import folder
from manystream.data.streams import StreamSpec
from manystream.data.survey import look_at
from tests.data.builders import DEPTH, RGB, write_image

files_module = sys.modules["manystream.data.files"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("bed/a", "bed/b", "desk/c"):
        pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        write_image(tmp_path / "data/train/rgb" / f"{name}.png", pixels)
        write_image(tmp_path / "data/val/rgb" / f"{name}.png", pixels ^ 1)
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch):
    """Files that are decoded, by their names."""
    names, read = [], files_module.read_image

    def noted(path, max_pixels):
        names.append(path.relative_to(path.parents[3]).as_posix())
        return read(path, max_pixels)

    monkeypatch.setattr(files_module, "read_image", noted)
    return names


def seen(root, splits=("train",), streams=(RGB,)) -> list[tuple]:
    """What is seen of the images, without arrays."""
    table = folder(root, splits=splits, streams=streams)
    return [(x.dtype, x.size, x.digest, tuple(x.moments[1])) for x in look_at(table).values()]


def test_a_look_is_kept(root, decoded, cache):
    before = sorted(root.rglob("*"))
    first = seen(root)
    assert len(decoded) == 3
    assert seen(root) == first
    assert len(decoded) == 3
    assert sorted(root.rglob("*")) == before
    (kept,) = (path for path in cache.rglob("*") if path.is_file())
    json.loads(kept.read_text())


def test_one_look_serves_every_choice_of_splits(root, decoded):
    seen(root, ("train", "val"))
    assert len(decoded) == 6
    seen(root, ("val",))
    seen(root, ("train",))
    assert len(decoded) == 6


def touch_later(root):
    path = root / "train/rgb/bed/a.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    return ["train/rgb/bed/a.png"]


def replace_image(root):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / "train/rgb/bed/a.png")
    return ["train/rgb/bed/a.png"]


def add_image(root):
    write_image(root / "train/rgb/bed/z.png", np.zeros((9, 9, 3), np.uint8))
    return ["train/rgb/bed/z.png"]


def remove_image(root):
    (root / "train/rgb/bed/a.png").unlink()
    return []


@pytest.mark.parametrize("change", [touch_later, replace_image, add_image, remove_image])
def test_only_what_has_changed_is_looked_at_again(root, decoded, change, cache, monkeypatch):
    seen(root)
    decoded.clear()
    expected = change(root)
    again = seen(root)
    assert decoded == expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "empty"))
    assert seen(root) == again


def test_another_kind_of_stream_is_looked_at_again(root, decoded):
    seen(root)
    seen(root, streams=(StreamSpec("rgb", 3, "depth"),))
    assert len(decoded) == 6


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"1": {"x": [1, 2]}}', '{"1": 3}'])
def test_a_damaged_cache_is_passed_over(root, decoded, cache, content):
    first = seen(root)
    (kept,) = (path for path in cache.rglob("*") if path.is_file())
    kept.write_text(content)
    assert seen(root) == first
    assert len(decoded) == 6


def test_what_could_not_be_read_is_looked_at_each_time(root, decoded):
    (root / "train/rgb/desk/torn.png").write_text("torn")
    for _ in range(2):
        looks = look_at(folder(root, splits=["train"], streams=(RGB,)))
        assert [bool(look.problem) for look in looks.values()] == [False, False, False, True]
    assert len(decoded) == 5


def test_doubts_are_kept_too(tmp_path):
    for name, value in (("bed/a", -1), ("desk/b", 1)):
        write_image(tmp_path / f"x/train/depth/{name}.npy", np.full((2, 3), value, np.float32))
    first, again = (look_at(folder(tmp_path / "x", streams=(DEPTH,))) for _ in range(2))
    assert first[0, 0].doubt == again[0, 0].doubt != ""


def test_where_nothing_can_be_kept_images_are_looked_at_each_time(root, decoded, cache):
    # A file where the folder should be stands for a read-only disk, which root can write to.
    cache.write_text("in the way")
    assert seen(root) == seen(root)
    assert len(decoded) == 6
    assert cache.read_text() == "in the way"


@pytest.mark.parametrize("named", ["", "relative/folder"])
def test_without_a_name_it_is_in_the_home(root, tmp_path, decoded, monkeypatch, named):
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert seen(root) == seen(root)
    assert len(decoded) == 3
    assert list((tmp_path / "home/.cache/manystream/survey").iterdir())

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    seen(root)
    assert len(decoded) == 6


def test_two_data_sets_keep_apart_and_a_manifest_of_a_folder_shares(root, tmp_path, decoded):
    rows = ["rgb,label", *(f"train/rgb/{n}.png,{n[:3]}" for n in ("bed/a", "bed/b", "desk/c"))]
    (root / "all.csv").write_text("\n".join(rows))
    first = seen(root)
    table = manifest(root / "all.csv", splits=["trainval"], report=lambda line: None)
    decoded.clear()
    looks = look_at(table)
    assert decoded == []
    assert [look.digest for look in looks.values()] == [digest for _, _, digest, _ in first]
