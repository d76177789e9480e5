"""Sources of labelled samples, and how they become compact batches."""

from manystream.extras import train_extra

with train_extra():
    import PIL  # noqa: F401 - what reads images is of the extra; here it is missed first
