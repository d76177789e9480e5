"""Reads images of a source as a sampler asks for them, and feeds a network with batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from manystream.batch import StreamBatch
from manystream.data.augmentation import Draw, draw, frame_of, sample_rng
from manystream.data.options import Augmentation, DataOptions
from manystream.data.preprocessing import Preprocessing, as_tensor
from manystream.data.sampler import SampleKey, StreamBatchSampler
from manystream.data.table import ArrayTable, SampleTable
from manystream.data.transforms import RawBatch, packed, prepare
from manystream.presence import Presence

Key = TypeVar("Key")
Batch = TypeVar("Batch")

# More would only wait for each other: a third of their time is spent on draws, in Python.
_MOST_THREADS = 4
# As many as DataLoader has a worker process prefetch.
_PREFETCHED_PER_THREAD = 2


class StreamDataset(Dataset[RawBatch]):
    """A table read by whole batches; a blanked or absent image is never read.

    Samples are varied as ``augmentation`` says, drawn by ``seed``, epoch and the sample's number.
    """

    def __init__(
        self,
        source: SampleTable,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source.targets)

    def __getitem__(self, key: SampleKey | int) -> RawBatch:
        """Read a batch of one sample; a bare number asks for every stream it has."""
        if not isinstance(key, SampleKey):
            key = SampleKey(key, (True,) * len(self.source.streams))
        return self.read([key])

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        """Read a batch; DataLoader calls this with what the sampler asks for."""
        return self.read(keys)

    def read(self, keys: Sequence[SampleKey], *, pinned: bool = False) -> RawBatch:
        """Read what is asked for; an :class:`ArrayTable` into page-locked memory if ``pinned``.

        Raises:
            ValueError: if an image has not the channels of its stream, or a sample no stream.
        """
        indices = torch.tensor([key.index for key in keys])
        kept = torch.tensor([key.kept for key in keys]) & self.source.present[indices]
        presence = Presence.from_mask(kept)
        rows = [presence.samples(m) for m in range(presence.num_streams)]
        images = tuple(
            self._read_stream(indices[samples].tolist(), m, pinned)
            for m, samples in enumerate(rows)
        )
        draws = self._draw(keys, rows, images)
        frames = [
            [frame_of(draws[b], *image.shape[:2]) for b, image in zip(of, x, strict=True)]
            for of, x in zip(map(Tensor.tolist, rows), images, strict=True)
        ]
        return RawBatch(
            images,
            tuple(torch.tensor(of_stream).view(-1, 5) for of_stream in frames),
            draws,
            presence,
            self.source.targets[indices],
            tuple(self.source.ids[key.index] for key in keys),
        )

    def _read_stream(
        self, indices: Sequence[int], stream: int, pinned: bool
    ) -> Tensor | list[Tensor]:
        spec = self.source.streams[stream]
        if not indices:
            return torch.empty((0, 1, 1, spec.channels), dtype=torch.uint8)
        images: Tensor | list[Tensor]
        if isinstance(self.source, ArrayTable):
            images = self.source.read_many(indices, stream, pinned=pinned)
        else:
            images = [as_tensor(self.source.read(index, stream)) for index in indices]
        for image in images:
            if image.dim() != 3 or image.shape[2] != spec.channels:
                raise ValueError(
                    f"an image of stream {spec.name!r} has shape {tuple(image.shape)}; "
                    f"expected (H, W, {spec.channels})"
                )
        return images

    def _draw(
        self,
        keys: Sequence[SampleKey],
        rows: Sequence[Tensor],
        images: Sequence[Tensor | list[Tensor]],
    ) -> tuple[Draw, ...]:
        """Draw for each sample, from the sizes of the images that it has."""
        if self.augmentation is None:
            return (Draw(),) * len(keys)
        sizes: list[list[tuple[int, int]]] = [[] for _ in keys]
        for samples, of_stream in zip(rows, images, strict=True):
            for sample, image in zip(samples.tolist(), of_stream, strict=True):
                sizes[sample].append((image.shape[0], image.shape[1]))
        return tuple(
            draw(self.augmentation, has, sample_rng(self.seed, key.epoch, key.index))
            for key, has in zip(keys, sizes, strict=True)
        )


class StreamLoader(DataLoader[StreamBatch]):
    """Reads the batches that a sampler asks for, and prepares them for the network.

    For a GPU they travel as they are stored, and are prepared there while the host reads on; what
    lies in mapped memory is then read by threads of this process, the rest by processes.

    Args:
        dataset: what to read.
        sampler: which samples make a batch, and which of their streams to read.
        num_workers: processes, or threads, that read; 0 reads in the caller's.
        device: where batches are prepared; None prepares them where they are read.
    """

    def __init__(
        self,
        dataset: StreamDataset,
        sampler: StreamBatchSampler,
        *,
        num_workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        by_threads = device is not None and isinstance(dataset.source, ArrayTable)
        num_processes = 0 if by_threads else num_workers
        collate: Any = prepare if device is None else packed
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            num_workers=num_processes,
            persistent_workers=num_processes > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=partial(collate, preprocessing=dataset.preprocessing),
        )
        self.device = device
        self.num_threads = min(num_workers, _MOST_THREADS) if by_threads else 0
        self._copying: torch.cuda.Stream | None = None

    def __iter__(self) -> Iterator[StreamBatch]:  # type: ignore[override]
        if self.device is None:
            return super().__iter__()
        return map(partial(self._prepare_on, self.device), self._read(self.device))

    def _read(self, device: torch.device) -> Iterator[Any]:
        if not self.num_threads:
            # Begun at once, not with the first batch: it draws a seed, which a resumed run repeats.
            return super().__iter__()
        keys: Any = self.batch_sampler
        read = partial(self._read_packed, pinned=device.type == "cuda")
        return prefetch(read, keys, self.num_threads)

    def _read_packed(self, keys: Sequence[SampleKey], *, pinned: bool) -> RawBatch:
        dataset: Any = self.dataset
        raw = packed(dataset.read(keys, pinned=pinned), dataset.preprocessing)
        return raw.pin_memory() if pinned else raw

    def _prepare_on(self, device: torch.device, raw: RawBatch) -> StreamBatch:
        preprocessing = self.dataset.preprocessing  # type: ignore[attr-defined]
        if device.type != "cuda":
            return prepare(raw.to(device), preprocessing)
        # Images are copied on a stream of their own, while the GPU does the step before. Their
        # memory is the next copy's as soon as they are prepared, which the last line has that copy
        # wait for. The target, which lives on with the batch, is copied in order.
        computing = torch.cuda.current_stream(device)
        # Kept: memory belongs to the stream that it was taken on.
        self._copying = copying = self._copying or torch.cuda.Stream(device)
        with torch.cuda.stream(copying):
            images = replace(raw, frames=(), target=None).to(device).images
        computing.wait_stream(copying)
        batch = prepare(replace(raw, images=images).to(device), preprocessing)
        copying.wait_stream(computing)
        return batch


def make_loader(
    dataset: StreamDataset,
    options: DataOptions,
    *,
    shuffle: bool = False,
    accelerator: str = "auto",
) -> StreamLoader:
    """Feed a data set in compact batches; shuffled ones leave a smaller last batch out.

    ``accelerator`` says where the network runs, by Lightning's names.
    """
    sampler = StreamBatchSampler(
        dataset.source.present,
        options.samples_per_batch,
        shuffle=shuffle,
        drop_last=shuffle,
        seed=dataset.seed,
    )
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda") if on_gpu else None
    return StreamLoader(dataset, sampler, num_workers=options.num_workers, device=device)


def prefetch(
    read: Callable[[Key], Batch], keys: Iterable[Key], num_threads: int
) -> Iterator[Batch]:
    """Read in threads, and give what was read in the order of the keys.

    A batch from a worker process travels through shared memory that is made, filled, copied and
    given back each time, which takes longer than a copy out of a memory map; a thread leaves it
    where it is to be used. Whoever stops early stops the threads. Keys are asked for in the
    caller's own thread, up to twice as many in advance as there are threads.

    Raises:
        Exception: what ``read`` raised, in the place of what it was to read.

    Example:
        >>> list(prefetch(abs, [-3, 1, -2], num_threads=2))
        [3, 1, 2]
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="manystream-read")
    pending: deque[Future[Batch]] = deque()
    try:
        for key in keys:
            pending.append(pool.submit(read, key))
            if len(pending) > _PREFETCHED_PER_THREAD * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
