import errno
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from manystream.data.prepared import PreparedSource, writer
from manystream.data.survey import survey
from tests.data.builders import DEPTH, RGB, ArraySource, noise
from tests.data.prepared.builders import contents, prepared, small_source

FORK = multiprocessing.get_context("fork")


class CountedSource(ArraySource):
    """Counts reads, and fails or dawdles at one."""

    def __init__(self, whole, fail_at=None, dawdle=0.0):
        super().__init__(whole.streams, whole._samples)
        self.targets, self.groups = whole.targets, whole.groups
        self.fail_at, self.dawdle, self.reads = fail_at, dawdle, 0

    def read(self, index, stream):
        self.reads += 1
        time.sleep(self.dawdle)
        if self.reads == self.fail_at:
            raise KeyboardInterrupt
        return super().read(index, stream)


@pytest.fixture
def statistics():
    """Statistics that cost no read."""
    return survey(small_source()).statistics


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted call writes."""
    return contents(prepared(tmp_path_factory.mktemp("whole")))


def test_progress_counts_images(tmp_path):
    seen = []
    prepared(tmp_path, progress=lambda done, total: seen.append((done, total)))
    total = int(small_source().present.sum())
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_workers_write_the_same_bytes(tmp_path, whole):
    assert contents(prepared(tmp_path, num_workers=2)) == whole


def test_nothing_but_the_split_is_left(tmp_path, whole):
    prepared(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prepared.json", "train"]
    assert sorted(whole) == ["0-rgb.npy", "1-depth.npy", "index.json"]


@pytest.mark.parametrize("fail_at", [1, 2, 17, 18, 40, 60])
def test_an_interrupted_split_is_refused_then_finished(tmp_path, whole, statistics, fail_at):
    interrupted = CountedSource(small_source(), fail_at)
    with pytest.raises(KeyboardInterrupt):
        writer.prepare_split(interrupted, statistics, tmp_path, "train")
    if fail_at > 2:  # Before that, the folder does not exist.
        with pytest.raises(ValueError, match="was interrupted; finish it by running the same"):
            PreparedSource(tmp_path, "train")
    resumed = CountedSource(small_source())
    writer.prepare_split(resumed, statistics, tmp_path, "train")
    assert contents(tmp_path / "train") == whole
    finished_chunks = (fail_at - 3) // writer.ROWS_PER_CHUNK  # Two reads were for the plan.
    assert resumed.reads <= 2 + int(resumed.present.sum()) - finished_chunks * 13


@pytest.mark.parametrize("moment", [0.02, 0.05, 0.11])
def test_a_killed_split_is_finished(tmp_path, whole, statistics, moment):
    slow = CountedSource(small_source(), dawdle=0.003)
    arguments = (slow, statistics, tmp_path, "train")
    child = FORK.Process(target=writer.prepare_split, args=arguments)
    child.start()
    time.sleep(moment)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "train").exists()
    prepared(tmp_path)
    assert contents(tmp_path / "train") == whole


def test_rows_that_a_power_cut_lost_are_written_again(tmp_path, whole, statistics):
    with pytest.raises(KeyboardInterrupt):
        writer.prepare_split(CountedSource(small_source(), 60), statistics, tmp_path, "train")
    journal = tmp_path / "train.partial" / "journal.jsonl"
    assert len(journal.read_text().split()) > 2
    path = tmp_path / "train.partial" / "0-rgb.npy"
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\0" * (len(content) - 200))
    with journal.open("a") as file:
        file.write("\n[[1, 0, 16], [5")
    prepared(tmp_path)
    assert contents(tmp_path / "train") == whole


def test_a_finished_split_is_left_as_it_is(tmp_path, statistics):
    prepared(tmp_path)
    before = (tmp_path / "train" / "0-rgb.npy").stat().st_mtime_ns
    again = CountedSource(small_source())
    writer.prepare_split(again, statistics, tmp_path, "train")
    assert again.reads == 2
    assert (tmp_path / "train" / "0-rgb.npy").stat().st_mtime_ns == before


def test_splits_are_added(tmp_path):
    prepared(tmp_path)
    prepared(tmp_path, split="val")
    assert PreparedSource(tmp_path, "val").ids == PreparedSource(tmp_path, "train").ids


def test_another_source_is_not_mixed_in(tmp_path, statistics):
    prepared(tmp_path)
    with pytest.raises(ValueError, match="holds a split of another source, selection or size"):
        prepared(tmp_path, small_source(12))
    with pytest.raises(KeyboardInterrupt):
        writer.prepare_split(CountedSource(small_source(), 30), statistics, tmp_path, "val")
    with pytest.raises(ValueError, match="unfinished split of another source, selection or size"):
        prepared(tmp_path, split="val", size=(3, 3))


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match="exists and is no prepared set"):
        prepared(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_differ_need_a_size(tmp_path, num_workers):
    source = ArraySource((RGB,), [[noise(4, 4)], [noise(4, 6)]])
    with pytest.raises(ValueError, match=r"^'1' of stream 'rgb' .* \(4, 6, 3\); .* --size$"):
        prepared(tmp_path, source, num_workers=num_workers)
    prepared(tmp_path / "resized", source, size=(4, 4), num_workers=num_workers)


def test_a_full_disk_loses_nothing(tmp_path, whole, monkeypatch):
    write, calls = writer.write_rows, []

    def full_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(writer, "write_rows", full_at_the_third)
    with pytest.raises(ValueError, match="No space left on device; what is written is kept"):
        prepared(tmp_path)
    prepared(tmp_path)
    assert contents(tmp_path / "train") == whole


def test_too_small_a_disk_is_seen_before_writing(tmp_path, monkeypatch):
    tiny = type("Usage", (), {"free": 100})
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: tiny)
    with pytest.raises(ValueError, match=r"takes 0\.00 GiB and .* has 0\.00 GiB left; make room"):
        prepared(tmp_path)


def test_float_depth_with_nan_is_kept(tmp_path):
    image = np.array([np.nan, np.inf, 0, 1.5], np.float32).reshape(2, 2, 1)
    prepared(tmp_path, ArraySource((DEPTH,), [[image], [image]]))
    np.testing.assert_array_equal(PreparedSource(tmp_path, "train").read(1, 0), image)
