import pytest
import torch
from hypothesis import given

from manystream.batch import StreamBatch
from manystream.data.dataset import Collate, Sample, SampleKey, StreamDataset
from manystream.data.transforms import EvalTransform
from manystream.presence import Presence
from tests.builders import CHANNELS, mask_of, presences, random_images
from tests.data.builders import DEPTH, RGB, ArraySource, identity, noise

UNREAD = AssertionError("a blanked image was read")


class Recorder:
    """A transform that keeps what it was given."""

    def __call__(self, images, rng):
        self.images, self.drawn = images, rng.random()
        return [None if x is None else torch.zeros(1, 2, 2) for x in images]


def dataset(*samples, transform=None, seed=0) -> StreamDataset:
    source = ArraySource((RGB, DEPTH), list(samples))
    return StreamDataset(source, transform or EvalTransform(identity(RGB, DEPTH, size=4)), seed)


def samples_of(images, mask) -> list[Sample]:
    """What a data set would give for each row of a mask, with its number as the target."""
    return [
        Sample(tuple(x[b] if has else None for x, has in zip(images, row, strict=True)), b)
        for b, row in enumerate(mask.tolist())
    ]


def test_a_bare_number_asks_for_every_stream_the_sample_has():
    data = dataset([noise(4, 4), noise(4, 4, 1)], [noise(4, 4), None])
    data.source.targets = torch.tensor([7, 5])
    assert len(data) == 2
    both, alone = data[0], data[1]
    assert [tuple(x.shape) for x in both.streams] == [(3, 4, 4), (1, 4, 4)]
    assert alone.streams[1] is None
    assert (both.target, alone.target) == (7, 5)


@pytest.mark.parametrize("kept", [(True, False), (False, True)])
def test_a_blanked_image_is_never_read(kept):
    images = [noise(4, 4), noise(4, 4, 1)]
    images[kept.index(False)] = UNREAD
    sample = dataset(images)[SampleKey(0, kept)]
    assert [x is not None for x in sample.streams] == list(kept)


def test_the_source_that_raises_can_raise():
    with pytest.raises(AssertionError, match="a blanked image was read"):
        dataset([UNREAD, noise(4, 4, 1)])[0]


def test_an_absent_image_is_not_asked_for_even_where_it_is_kept():
    sample = dataset([None, noise(4, 4, 1)])[SampleKey(0, (True, True))]
    assert sample.streams[0] is None


def test_augmentation_depends_on_seed_epoch_and_number():
    def drawn(seed, epoch, index):
        recorder = Recorder()
        images = [noise(4, 4), noise(4, 4, 1)]
        dataset(images, images, transform=recorder, seed=seed)[SampleKey(index, (1, 1), epoch)]
        return recorder.drawn

    assert drawn(1, 2, 0) == drawn(1, 2, 0)
    assert len({drawn(1, 2, 0), drawn(0, 2, 0), drawn(1, 0, 0), drawn(1, 2, 1)}) == 4


@given(presences())
def test_collate_gives_what_from_full_gives(words):
    mask = mask_of(words)
    images = random_images(mask, size=(3, 5), dtype=torch.float32)
    batch = Collate(CHANNELS[: mask.shape[1]])(samples_of(images, mask))
    target = torch.arange(len(mask))
    expected = StreamBatch.from_full(images, Presence.from_mask(mask), target)
    assert torch.equal(batch.presence.mask, mask)
    assert torch.equal(batch.target, target)
    for m, (found, wanted) in enumerate(zip(batch.streams, expected.streams, strict=True)):
        assert torch.equal(batch.presence.samples(m), expected.presence.samples(m))
        assert torch.equal(found, wanted)


def test_a_stream_that_no_sample_has_is_empty_with_its_channels():
    mask = mask_of("100 100")
    images = random_images(mask, size=(3, 5), dtype=torch.float32)
    batch = Collate((3, 1, 2))(samples_of(images, mask))
    assert [tuple(x.shape) for x in batch.streams] == [(2, 3, 3, 5), (0, 1, 3, 5), (0, 2, 3, 5)]
    assert batch.streams[1].dtype == torch.float32


def test_a_sample_without_any_stream_is_refused():
    with pytest.raises(ValueError, match="samples without any stream: 0"):
        Collate((3, 1))([Sample((None, None), 0)])
