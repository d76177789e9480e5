import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manystream.data import transforms
from manystream.data.image import UnreadableImageError
from manystream.data.loader import StreamDataset, StreamLoader, make_loader
from manystream.data.options import Augmentation, DataOptions
from manystream.data.prepared import prepared
from manystream.data.preprocessing import Preprocessing, blend_together, take_together
from manystream.data.sampler import SampleKey, StreamBatchSampler, shared
from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec
from manystream.data.table import ArrayTable
from manystream.data.transforms import packed, prepare
from manystream.dropout import ModalityDropout
from tests.data.builders import (
    DEPTH,
    OTHER,
    RGB,
    ArraySource,
    identity,
    noise,
    reading_threads,
)
from tests.data.prepared.builders import small_table, write_set

SECOND = StreamSpec("second", 1, "depth")
STREAMS = (RGB, DEPTH, OTHER, SECOND)
STATISTICS = (
    StreamStatistics((120.0, 110.0, 100.0), (60.0, 50.0, 40.0)),
    StreamStatistics((3000.0,), (1500.0,)),
    StreamStatistics((0.4, 0.6), (0.3, 0.2)),
    StreamStatistics((2.0,), (1.0,)),
)
ALL = Augmentation(scale=(0.3, 1.0), depth_scale=0.2, depth_noise=0.1, depth_holes=3)
CPU = torch.device("cpu")


def source_of(sizes, words) -> ArraySource:
    """Samples of four streams, as large as ``sizes`` has it and present as the words of bits."""
    rng = np.random.default_rng(1)

    def images(height, width):
        return [
            rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            rng.integers(0, 9000, (2 * height, 2 * width, 1)).astype(np.uint16),
            rng.random((height, width, 2), np.float32),
            rng.choice(np.array([0, np.nan, 1, 3], np.float32), (height, width, 1)),
        ]

    rows = [
        [image if bit == "1" else None for image, bit in zip(images(*size), word, strict=True)]
        for size, word in zip(sizes, words, strict=True)
    ]
    return ArraySource(STREAMS, rows)


def by_device(images, frames, size, *, nearest):
    """What `crop_resize` does on a GPU, here."""
    return (take_together if nearest else blend_together)(images, frames, size)


def both(source, preprocessing, augmentation, keys, seed=5):
    """What the host makes of a batch, and what the device does."""
    raw = StreamDataset(source, preprocessing, augmentation, seed).read(keys)
    host = prepare(raw, preprocessing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "crop_resize", by_device)
        return host, prepare(packed(raw, preprocessing), preprocessing)


def assert_alike(host, device, streams=STREAMS, statistics=STATISTICS):
    assert torch.equal(host.presence.mask, device.presence.mask)
    assert torch.equal(host.target, device.target)
    assert host.ids == device.ids
    for spec, stats, x, y in zip(streams, statistics, host.streams, device.streams, strict=True):
        assert x.shape == y.shape
        assert y.dtype == torch.float32
        # 8 bits are resized as such on the host: a level, and the contrast that jitter gives it.
        level = 2.5 / min(stats.std) if spec.kind == "color" else 1e-4
        assert torch.allclose(x, y, rtol=1e-4, atol=level)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=3, max_size=3),
    size=st.tuples(st.integers(2, 24), st.integers(2, 24)),
)
def test_host_and_device_draw_and_do_the_same(seed, sizes, size):
    source = source_of(sizes, ["1111", "0110", "1001"])
    preprocessing = Preprocessing(size, STREAMS, STATISTICS)
    keys = [SampleKey(index, (True,) * 4, epoch=2) for index in (2, 0, 1)]
    assert_alike(*both(source, preprocessing, ALL, keys, seed))


def test_depth_is_the_same_to_the_pixel():
    source = source_of([(37, 23)] * 4, ["1111"] * 4)
    preprocessing = Preprocessing((16, 12), STREAMS, STATISTICS)
    keys = [SampleKey(index, (True,) * 4) for index in range(4)]
    host, device = both(source, preprocessing, Augmentation(), keys)
    for stream in (1, 3):
        assert torch.equal(host.streams[stream], device.streams[stream])


@pytest.mark.parametrize("rows_at_once", [1, 2, 3])
def test_what_becomes_of_a_sample_does_not_depend_on_its_batch(rows_at_once):
    source = source_of([(37, 23), (20, 30), (9, 9)], ["1111"] * 3)
    height = width = int((transforms._AT_ONCE_ON_CPU / rows_at_once) ** 0.5)
    preprocessing = Preprocessing((height, width), STREAMS, STATISTICS)
    data = StreamDataset(source, preprocessing, ALL, 5)
    together = prepare(data.read([SampleKey(i, (True,) * 4) for i in range(3)]), preprocessing)
    for b in range(3):
        alone = prepare(data[b], preprocessing)
        for x, y in zip(together.streams, alone.streams, strict=True):
            torch.testing.assert_close(x[b : b + 1], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 7), (6, 8)])
def test_without_augmentation_the_whole_image_is_taken(size):
    source = source_of([(6, 8)] * 2, ["1100", "1110"])
    preprocessing = Preprocessing(size, STREAMS, STATISTICS)
    keys = [SampleKey(index, (True,) * 4) for index in range(2)]
    host, device = both(source, preprocessing, None, keys)
    assert_alike(host, device)
    if size == (6, 8):  # nothing was resized
        assert torch.equal(host.streams[0], device.streams[0])


def test_a_blanked_image_is_neither_read_nor_there():
    source = source_of([(6, 8)] * 2, ["1100", "1100"])
    source._samples[0][1] = AssertionError("a blanked image was read")
    preprocessing = Preprocessing(4, STREAMS, STATISTICS)
    keys = [SampleKey(0, (True, False, True, True)), SampleKey(1, (True,) * 4)]
    raw = StreamDataset(source, preprocessing, Augmentation()).read(keys)
    assert [len(images) for images in raw.images] == [2, 1, 0, 0]
    for batch in (prepare(raw, preprocessing), prepare(packed(raw, preprocessing), preprocessing)):
        shapes = [tuple(x.shape) for x in batch.streams]
        assert shapes[1:] == [(1, 1, 4, 4), (0, 2, 4, 4), (0, 1, 4, 4)]
    with pytest.raises(AssertionError, match="blanked image was read"):
        StreamDataset(source, preprocessing).read([SampleKey(0, (True,) * 4)])


def test_images_are_moved_as_they_are_stored():
    source = source_of([(6, 8)] * 2, ["1111"] * 2)
    preprocessing = Preprocessing(4, STREAMS, STATISTICS)
    raw = packed(StreamDataset(source, preprocessing, Augmentation())[0], preprocessing)
    assert [x.dtype for x in raw.images] == [
        torch.uint8,
        torch.uint16,
        torch.float32,
        torch.float32,
    ]


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), augmentation=st.sampled_from([None, ALL]))
def test_an_image_much_larger_than_the_networks_travels_as_large_as_the_networks(
    seed, augmentation
):
    source = source_of([(60, 90), (60, 90), (9, 14)], ["1111", "1011", "1110"])
    preprocessing = Preprocessing((16, 20), STREAMS, STATISTICS)
    keys = [SampleKey(index, (True,) * 4) for index in range(3)]
    raw = StreamDataset(source, preprocessing, augmentation, seed).read(keys)
    moved = packed(raw, preprocessing)
    assert moved.draws == raw.draws
    # 8 times 16 × 20 pixels are the most; depth is twice as high and wide as the others.
    assert [tuple(x.shape[1:3]) for x in moved.images] == [(16, 20), (18, 28), (16, 20), (16, 20)]
    expected = prepare(raw, preprocessing)
    assert_alike(expected, prepare(moved, preprocessing))
    assert_alike(*both(source, preprocessing, augmentation, keys, seed))
    for stream in (1, 3):  # depth, to the pixel
        assert torch.equal(expected.streams[stream], prepare(moved, preprocessing).streams[stream])


def test_an_image_up_to_eight_times_the_networks_travels_whole():
    source = source_of([(32, 80), (33, 80)], ["1000"] * 2)
    preprocessing = Preprocessing((16, 20), STREAMS, STATISTICS)
    data = StreamDataset(source, preprocessing)
    shapes = [packed(data[index], preprocessing).images[0].shape[1:3] for index in (0, 1)]
    assert list(map(tuple, shapes)) == [(32, 80), (16, 20)]


def test_images_of_8_and_of_16_bits_travel_together():
    small, large = noise(4, 4, 1), np.full((5, 4, 1), 40_000, np.uint16)
    source = ArraySource((DEPTH,), [[small], [large]])
    preprocessing = Preprocessing((4, 4), (DEPTH,), STATISTICS[1:2])
    keys = [SampleKey(index, (True,)) for index in range(2)]
    raw = StreamDataset(source, preprocessing).read(keys)
    moved = packed(raw, preprocessing)
    assert moved.images[0].dtype == torch.uint16
    found = prepare(moved, preprocessing).streams[0]
    assert torch.equal(found, prepare(raw, preprocessing).streams[0])


@pytest.fixture
def loader(tmp_path):
    write_set(tmp_path)
    source = prepared(tmp_path)
    preprocessing = Preprocessing((5, 6), source.streams, source.known_statistics("train"))

    def make(num_workers=0, device=CPU):
        sampler = StreamBatchSampler(source.present, 8, shuffle=True, seed=3)
        sampler.select = ModalityDropout(2, 0.5, seed=3).draw
        dataset = StreamDataset(source, preprocessing, Augmentation(), 3)
        return StreamLoader(dataset, sampler, num_workers=num_workers, device=device)

    return make


def test_prepared_rows_are_read_a_stream_at_a_time(loader, monkeypatch):
    calls = []
    read_many = ArrayTable.read_many

    def counted(self, indices, stream, **how):
        calls.append(stream)
        return read_many(self, indices, stream, **how)

    monkeypatch.setattr(ArrayTable, "read_many", counted)
    batches = list(loader())
    assert calls == [0, 1] * len(batches)
    assert sum(map(len, batches)) == len(small_table().ids)


def test_a_batch_is_the_same_wherever_it_is_prepared(loader):
    data = loader().dataset
    assert_same(begin(loader(device=None), 0), begin(loader(), 0))
    here = begin(loader(device=None), 0)
    keys = list(begin(loader(device=None), 0).batch_sampler)
    alone = [prepare(data.read(of), data.preprocessing) for of in keys]
    assert_same(alone, here)


@pytest.mark.parametrize("available", [False, True])
def test_the_place_follows_from_where_the_network_runs(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    data = StreamDataset(small_table(), identity(RGB, DEPTH))

    def device(accelerator):
        options = DataOptions(batch_size=4, num_workers=0)
        return make_loader(data, options, accelerator=accelerator).device

    assert device("cpu") is None
    for accelerator in ("auto", "gpu", "cuda"):
        assert device(accelerator) == (torch.device("cuda") if available else None)


def begin(loader, epoch, batch=0):
    """Go where a training loop would."""
    sampler = loader.batch_sampler
    sampler.epoch, sampler.start = epoch, batch
    sampler.select.__self__.begin(epoch, batch)
    return loader


def assert_same(expected, found):
    for a, b in zip(expected, found, strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.presence.mask, b.presence.mask)
        assert torch.equal(a.target, b.target)
        assert all(map(torch.equal, a.streams, b.streams))


@pytest.mark.parametrize(("num_workers", "device"), [(1, None), (1, CPU), (3, CPU)])
def test_who_reads_ahead_changes_nothing(loader, num_workers, device):
    """Neither processes, which prepare too, nor threads."""
    alone, helped = loader(), loader(num_workers, device)
    by_threads = (helped.num_threads, helped.num_workers) == (num_workers, 0)
    assert by_threads == (device is not None)
    for epoch in range(2):
        assert_same(begin(alone, epoch), begin(helped, epoch))


def test_epochs_differ(loader):
    batches = loader()
    first, second = next(iter(begin(batches, 0))), next(iter(begin(batches, 1)))
    assert first.ids != second.ids
    assert not torch.equal(first.streams[0][:1], second.streams[0][:1])


def test_a_run_goes_on_within_an_epoch_whatever_was_read_ahead(loader):
    threaded = loader(num_workers=2)
    expected = list(begin(threaded, 1))
    stopped = iter(begin(threaded, 1))
    next(stopped)
    del stopped
    state = torch.get_rng_state()
    assert_same(expected[1:], begin(threaded, 1, batch=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_share_what_threads_read(loader):
    whole = loader()
    whole.batch_sampler.select, whole.batch_sampler.batch_size = None, 16
    expected = {name for batch in whole for name in batch.ids}
    found = []
    for rank in range(2):
        part = loader(num_workers=2)
        part.batch_sampler.select = None
        with shared(part, rank, 2):
            found += [name for batch in part for name in batch.ids]
    assert len(found) == len(expected)
    assert set(found) == expected


def test_damage_that_a_thread_finds_is_told(loader, tmp_path):
    stream = tmp_path / "train/0-rgb.npy"
    stream.write_bytes(stream.read_bytes()[:-1] + b"!")
    with pytest.raises(UnreadableImageError, match=r"0-rgb\.npy: row \d+ is not what was written"):
        list(loader(num_workers=2))
    assert not reading_threads()


def test_dropout_is_drawn_before_reading(loader):
    filled = loader(num_workers=2)
    filled.batch_sampler.select = ModalityDropout(2, 1.0).draw
    assert all(batch.presence.mask.sum(dim=1).max() == 1 for batch in filled)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_does_what_the_host_does():
    source = source_of([(37, 23), (20, 30), (9, 9), (80, 60)], ["1111", "0110", "1001", "1111"])
    preprocessing = Preprocessing((16, 12), STREAMS, STATISTICS)
    keys = [SampleKey(index, (True,) * 4) for index in range(4)]
    for augmentation in (None, ALL):
        raw = StreamDataset(source, preprocessing, augmentation, 5).read(keys)
        host = prepare(raw, preprocessing)
        moved = packed(raw, preprocessing).pin_memory().to(torch.device("cuda"))
        assert_alike(host, prepare(moved, preprocessing).to("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_fed_what_the_host_is(tmp_path):
    write_set(tmp_path, small_table(size=(96, 128)))
    source = prepared(tmp_path)
    preprocessing = Preprocessing((40, 50), source.streams, source.known_statistics("train"))
    dataset = StreamDataset(source, preprocessing, Augmentation(), 3)
    sampler = StreamBatchSampler(source.present, 8, shuffle=True, seed=3)
    raw = dataset.read(next(iter(sampler)), pinned=True)
    assert all(images.is_pinned() for images in raw.images)
    fed = StreamLoader(dataset, sampler, num_workers=2, device=torch.device("cuda"))
    host = StreamLoader(dataset, sampler)
    busy = torch.rand(4096, 4096, device="cuda")
    found = []
    for batch in fed:  # copies run ahead of what the GPU is kept busy with
        busy = busy @ busy / busy.norm()
        found.append((batch, [x.clone() for x in batch.streams]))
    for expected, (batch, streams) in zip(host, found, strict=True):
        assert all(map(torch.equal, batch.streams, streams))  # not written over since
        assert_alike(expected, batch.to("cpu"), source.streams, source.known_statistics("train"))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nobody_waits_for_the_gpu():
    source = source_of([(37, 23), (20, 30)], ["1111", "1001"])
    preprocessing = Preprocessing((16, 12), STREAMS, STATISTICS)
    keys = [SampleKey(index, (True,) * 4) for index in range(2)]
    raw = packed(StreamDataset(source, preprocessing, ALL, 5).read(keys), preprocessing)
    raw, cuda = raw.pin_memory(), torch.device("cuda")
    prepare(raw.to(cuda), preprocessing)  # the statistics are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepare(raw.to(cuda), preprocessing)
    finally:
        torch.cuda.set_sync_debug_mode("default")
