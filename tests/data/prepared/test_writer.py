import errno
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from manystream.data.prepared import prepared, writer
from tests.data.builders import DEPTH, RGB, noise, table_of
from tests.data.prepared.builders import contents, small_table, statistics_of, write_set

FORK = multiprocessing.get_context("fork")


class Counted:
    """Counts reads of a table, and fails or dawdles at one."""

    def __init__(self, storage, reads, fail_at, dawdle):
        self.storage, self.reads, self.fail_at, self.dawdle = storage, reads, fail_at, dawdle

    def read(self, cell):
        self.reads.append(cell)
        time.sleep(self.dawdle)
        if len(self.reads) == self.fail_at:
            raise KeyboardInterrupt
        return self.storage.read(cell)


def counted(fail_at=None, dawdle=0.0):
    """A small table, and the reads of it."""
    table, reads = small_table(), []
    columns = tuple(
        replace(column, storage=Counted(column.storage, reads, fail_at, dawdle))
        for column in table.columns
    )
    return replace(table, columns=columns), reads


@pytest.fixture
def statistics():
    """Statistics that cost no read."""
    return statistics_of(small_table())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted call writes."""
    return contents(write_set(tmp_path_factory.mktemp("whole")))


def test_progress_counts_images(tmp_path):
    seen = []
    write_set(tmp_path, progress=lambda done, total: seen.append((done, total)))
    total = int(small_table().present.sum())
    assert 0 < seen[0][0] <= seen[0][1] == total
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_workers_write_the_same_bytes(tmp_path, whole):
    assert contents(write_set(tmp_path, num_workers=2)) == whole


def test_nothing_but_the_split_is_left(tmp_path, whole):
    write_set(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared.json", "train"]
    assert sorted(whole) == ["0-rgb.npy", "1-depth.npy", "index.json"]


@pytest.mark.parametrize("fail_at", [1, 2, 17, 18, 40, 60])
def test_an_interrupted_split_is_not_there_and_is_written_anew(
    tmp_path, whole, statistics, fail_at
):
    interrupted, _ = counted(fail_at)
    with pytest.raises(KeyboardInterrupt):
        writer.prepare_split(interrupted, statistics, tmp_path, "train")
    assert [p.name for p in tmp_path.iterdir()] == ["prepared.json"] * (fail_at > 2)
    if fail_at > 2:  # Before that, the folder does not exist.
        with pytest.raises(ValueError, match="was not written; run the same `manystream prepare`"):
            prepared(tmp_path)
    writer.prepare_split(small_table(), statistics, tmp_path, "train")
    assert contents(tmp_path / "train") == whole


@pytest.mark.parametrize("moment", [0.02, 0.05, 0.11])
def test_a_killed_split_is_finished(tmp_path, whole, statistics, moment):
    slow, _ = counted(dawdle=0.003)
    arguments = (slow, statistics, tmp_path, "train")
    child = FORK.Process(target=writer.prepare_split, args=arguments)
    child.start()
    time.sleep(moment)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "train").exists()
    write_set(tmp_path)
    assert contents(tmp_path / "train") == whole


def test_what_a_kill_left_is_told_and_written_anew(tmp_path, whole):
    write_set(tmp_path)
    (tmp_path / "train").rename(tmp_path / "train.partial")
    (tmp_path / "train.partial/0-rgb.npy").write_text("cut")
    (tmp_path / "train.partial/journal.jsonl").write_text("of an older version")
    with pytest.raises(ValueError, match="was interrupted; run the same `manystream prepare`"):
        prepared(tmp_path)
    write_set(tmp_path)
    assert contents(tmp_path / "train") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared.json", "train"]


def test_a_finished_split_is_left_as_it_is(tmp_path, statistics):
    write_set(tmp_path)
    before = (tmp_path / "train" / "0-rgb.npy").stat().st_mtime_ns
    again, reads = counted()
    writer.prepare_split(again, statistics, tmp_path, "train")
    assert len(reads) == 2
    assert (tmp_path / "train" / "0-rgb.npy").stat().st_mtime_ns == before


def test_splits_are_added(tmp_path):
    write_set(tmp_path)
    write_set(tmp_path, split="val")
    assert prepared(tmp_path, splits=["val"]).ids == prepared(tmp_path, splits=["train"]).ids


def test_another_source_is_not_mixed_in(tmp_path):
    write_set(tmp_path)
    with pytest.raises(ValueError, match="holds a split of another source, selection or size"):
        write_set(tmp_path, small_table(12))
    with pytest.raises(ValueError, match="holds a split of another source, selection or size"):
        write_set(tmp_path, size=(3, 3))


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match="exists and is no prepared set"):
        write_set(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_differ_need_a_size(tmp_path, num_workers):
    source = table_of((RGB,), [[noise(4, 4)], [noise(4, 6)]])
    with pytest.raises(
        ValueError, match=r"^'1' of stream 'rgb' .* \(4, 6, 3\); .* one size for all$"
    ):
        write_set(tmp_path, source, num_workers=num_workers)
    write_set(tmp_path / "resized", source, size=(4, 4), num_workers=num_workers)


def test_a_full_disk_leaves_nothing_behind(tmp_path, whole, monkeypatch):
    write, calls = writer.write_row, []

    def full_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(writer, "write_row", full_at_the_third)
    with pytest.raises(ValueError, match="No space left on device; mend that and try again"):
        write_set(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["prepared.json"]
    monkeypatch.undo()
    write_set(tmp_path)
    assert contents(tmp_path / "train") == whole


def test_too_small_a_disk_is_seen_before_writing(tmp_path, monkeypatch):
    tiny = type("Usage", (), {"free": 100})
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: tiny)
    with pytest.raises(ValueError, match=r"takes 0\.00 GiB and .* has 0\.00 GiB left; make room"):
        write_set(tmp_path)


def test_float_depth_with_nan_is_kept(tmp_path):
    image = np.array([np.nan, np.inf, 0, 1.5], np.float32).reshape(2, 2, 1)
    write_set(tmp_path, table_of((DEPTH,), [[image], [image]]))
    np.testing.assert_array_equal(prepared(tmp_path, splits=["train"]).read(1, 0), image)
