"""A manifest of five streams, four rows and its files, as CSV and as Parquet."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tifffile

from tests.data.builders import write_image

SHAPE = (4, 6)
COLUMNS = ("rgb", "depth", "infrared", "hha", "bands", "label", "split", "group")
ROWS = (
    ("rgb/a.jpg", "depth/a.png", "ir/a.png", "hha/a.png", "bands/a.tif", "bed", "train", "r1"),
    ("rgb/b.jpg", "", "ir/b.png", "", "bands/b.tif", "desk", "train", "r2"),
    ("", "depth/c.npy", "", "hha/c.png", "", "desk", "train", "r2"),
    ("rgb/d.jpg", "depth/d.png", "", "", "bands/d.tif", "bed", "val", "r3"),
)
MILLIMETRES = np.arange(1000, 1024, dtype=np.uint16).reshape(SHAPE)
FIVE_BANDS = np.arange(120, dtype=np.uint16).reshape(*SHAPE, 5) * 500


def pixels(stream: str) -> np.ndarray:
    return {
        "rgb": np.full((*SHAPE, 3), 90, np.uint8),
        "depth": MILLIMETRES,
        "infrared": MILLIMETRES,
        "hha": np.full((*SHAPE, 3), 30, np.uint8),
    }[stream]


def write_files(folder, rows=ROWS) -> None:
    for row in rows:
        for stream, cell in zip(COLUMNS[:5], row, strict=False):
            if stream == "bands" and cell:
                (folder / cell).parent.mkdir(exist_ok=True)
                tifffile.imwrite(folder / cell, FIVE_BANDS, planarconfig="contig")
            elif cell:
                write_image(folder / cell, pixels(stream))


def write_csv(path, rows=ROWS, columns=COLUMNS):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_parquet(path, rows=ROWS, columns=COLUMNS):
    table = {name: [row[i] or None for row in rows] for i, name in enumerate(columns)}
    pyarrow.parquet.write_table(pa.table(table), path)
    return path
