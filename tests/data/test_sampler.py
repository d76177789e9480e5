import pytest
import torch
from torch.utils.data import DataLoader

from manystream.data.dataset import SampleKey
from manystream.data.sampler import StreamBatchSampler, own_sampler, select_before_reading
from tests.builders import mask_of

EVERYTHING = torch.ones(10, 2, dtype=torch.bool)


def order(sampler: StreamBatchSampler) -> list[int]:
    return [key.index for batch in sampler for key in batch]


def test_batches_in_order():
    sampler = StreamBatchSampler(EVERYTHING, 4)
    assert [[key.index for key in batch] for batch in sampler] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert len(sampler) == 3
    assert next(iter(sampler))[1] == SampleKey(1, (True, True), 0)


def test_a_shuffled_order_depends_on_seed_and_epoch_alone():
    def shuffled(seed, epoch):
        sampler = StreamBatchSampler(EVERYTHING, 4, shuffle=True, seed=seed)
        sampler.epoch = epoch
        return order(sampler)

    assert sorted(shuffled(0, 0)) == list(range(10))
    assert shuffled(3, 5) == shuffled(3, 5)
    assert len({tuple(shuffled(s, e)) for s in range(3) for e in range(3)}) == 9


def test_the_epoch_is_in_every_key():
    sampler = StreamBatchSampler(EVERYTHING, 4, shuffle=True)
    sampler.epoch = 7
    assert {key.epoch for batch in sampler for key in batch} == {7}


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4]), (8, [4, 4]), (3, [3])])
def test_a_smaller_last_batch_is_dropped_unless_it_is_the_only_one(count, sizes):
    sampler = StreamBatchSampler(EVERYTHING[:count], 4, drop_last=True)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)


def test_what_is_kept_is_decided_before_anything_is_read():
    present = mask_of("11 10 01 11")
    sampler = StreamBatchSampler(present, 3)
    asked = []

    def select(mask):
        asked.append(mask)
        return mask & torch.tensor([False, True])

    sampler.select = select
    batches = [[(key.index, key.kept) for key in batch] for batch in sampler]
    assert batches == [[(0, (False, True)), (2, (False, True))], [(3, (False, True))]]
    assert torch.equal(torch.cat(asked), present)


def test_a_batch_of_which_nothing_is_kept_is_left_out():
    sampler = StreamBatchSampler(mask_of("10 10 01"), 2)
    sampler.select = lambda mask: mask & torch.tensor([False, True])
    assert [[key.index for key in batch] for batch in sampler] == [[2]]


def test_batch_size_below_one():
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        StreamBatchSampler(EVERYTHING, 0)


def test_selecting_for_a_while_leaves_the_sampler_as_it_was():
    sampler = StreamBatchSampler(EVERYTHING, 4)
    loader = DataLoader(range(10), batch_sampler=sampler)
    sampler.select = before = torch.clone

    def interrupted():
        with select_before_reading(loader, torch.zeros_like):
            assert sampler.select is torch.zeros_like
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sampler.select is before


def test_only_our_own_sampler_is_known():
    ours = StreamBatchSampler(EVERYTHING, 4)
    assert own_sampler(DataLoader(range(10), batch_sampler=ours)) is ours
    assert own_sampler(DataLoader(range(10), batch_size=2)) is None
    assert own_sampler([1, 2]) is None
    with select_before_reading([1, 2], torch.zeros_like):
        pass
