"""Miniature SUN RGB-D and NYU Depth v2, file by file as they are downloaded and unpacked."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

from manystream.data.splitting import HeldOut
from manystream.data.table import SampleTable
from tests.data.builders import write_image

AUTHORS_ROOT = "/n/fs/sun3d/data/SUNRGBD/"
SHAPE = (24, 32)  # height and width

# Of every sensor; what follows shares a room as far as names tell.
SUN_TRAIN = {
    "kv1/b3dodata/img_0063": "office",
    "kv1/NYUdata/NYU0003": "office",
    "kv1/NYUdata/NYU0004": "office",
    "kv1/NYUdata/NYU0006": "bedroom",
    "kv2/align_kv2/2014-12-18_11-31-54_260595134347": "bedroom",
    "kv2/kinect2data/000002_2014-05-26_14-23-37_260595134347_rgbf000103-resize": "bedroom",
    "kv2/kinect2data/000003_2014-05-26_14-23-37_260595134347_rgbf000151-resize": "bedroom",
    "realsense/lg/2014_10_24-09_14_34-1311000073": "office",
    "realsense/sa/2014_10_21-15_21_11-1311000073": "idk",
    "xtion/sun3ddata/brown_bm_1/brown_bm_1/0000103-000003416566": "office",
    "xtion/sun3ddata/brown_bm_1/brown_bm_1/0000200-000006650000": "office",
    "xtion/xtion_align_data/2014_12_18_12_3_40": "bedroom",
}
SUN_TEST = {"kv1/NYUdata/NYU0001": "kitchen", "realsense/sh/2014_10_21-11_35_34-131": "bedroom"}


def part_of(importer, root: Path, split: str, report=lambda line: None, **options) -> SampleTable:
    """One split of a data set; ``val_share`` says how much of training is held out."""
    if "val_share" in options:
        options["held_out"] = HeldOut(options.pop("val_share"))
    table = importer(root, splits=[split], report=report, **options)
    assert table.rows(split) == list(range(len(table)))  # and nothing else
    return table


def rotated(millimetres: np.ndarray) -> np.ndarray:
    """Turned three bits to the left within 16 bits: what SUN RGB-D's depth files store."""
    wide = millimetres.astype(np.uint32)
    return (((wide << 3) | (wide >> 13)) & 0xFFFF).astype(np.uint16)


def sun_depth(number: int) -> np.ndarray:
    """Millimetres of the depth of one scene: a hole, 1 mm steps, and something very far."""
    depth = 1000 + 100 * number + np.arange(np.prod(SHAPE)).reshape(SHAPE)
    depth[0, 0], depth[0, 1] = 0, 9000
    return depth.astype(np.uint16)


def write_sun_scene(tree: Path, folder: str, label: str, number: int) -> None:
    here = tree / folder
    write_image(here / "image" / "0000103.jpg", np.full((*SHAPE, 3), 10 * number, np.uint8))
    write_image(here / "depth" / "0000103.png", rotated(sun_depth(number)))
    write_image(here / "depth_bfx" / "0000103.png", rotated(sun_depth(number) + 1))
    write_image(here / "fullres" / "0000103.jpg", np.zeros((*SHAPE, 3), np.uint8))
    (here / "scene.txt").write_text(label + "\n", encoding="utf-8")
    (here / "intrinsics.txt").write_text("570.342 0 320 0 570.342 240 0 0 1")


def write_sun_split(tree: Path, train: Sequence[str], test: Sequence[str], **kind) -> None:
    path = tree.parent / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    half = len(train) // 2
    inner = {"train": official_cells(train[:half]), "val": official_cells(train[half:])}
    lists = {"alltrain": official_cells(train), "alltest": official_cells(test)}
    savemat(path, lists | {"trainvalsplit": inner}, **kind)


def official_cells(folders: Sequence[str]) -> np.ndarray:
    """A 1×N cell array; some of the official paths end in a slash, some do not."""
    cells = np.empty((1, len(folders)), object)
    cells[0] = [AUTHORS_ROOT + folder + "/" * (i % 2) for i, folder in enumerate(folders)]
    return cells


def write_sun(root: Path, **kind) -> Path:
    """The whole data set; returns the folder that holds SUNRGBD and SUNRGBDtoolbox."""
    tree = root / "SUNRGBD"
    for number, (folder, label) in enumerate((SUN_TRAIN | SUN_TEST).items()):
        write_sun_scene(tree, folder, label, number)
    write_sun_split(tree, list(SUN_TRAIN), list(SUN_TEST), **kind)
    return root


# Scene type, scene, and whether the frame is in training.
NYU_FRAMES = (
    ("kitchen", "kitchen_0004", False),
    ("kitchen", "kitchen_0004", False),
    ("office", "office_0003", True),
    ("office", "office_0003", True),
    ("bookstore", "bookstore_0001", True),
    ("cafe", "cafe_0001", True),
    ("cafe", "cafe_0001", True),
    ("office", "office_0021", True),
    ("excercise_room", "excercise_room_0001", False),
    ("bookstore", "bookstore_0002", True),
    ("student_lounge", "student_lounge_0001", True),
)


def nyu_image(number: int) -> np.ndarray:
    rows, columns = np.indices(SHAPE)
    return np.stack([rows, columns, np.full(SHAPE, number)], -1).astype(np.uint8)


def nyu_depth(number: int) -> np.ndarray:
    return (1 + number + np.arange(np.prod(SHAPE)).reshape(SHAPE) / 1000).astype(np.float32)


def nyu_raw_depth(number: int) -> np.ndarray:
    depth = nyu_depth(number)
    depth[:2] = 0
    return depth


def write_nyu(root: Path, frames=NYU_FRAMES) -> Path:
    """Both files; returns their folder."""
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, matlab_class, image in (
            ("images", "uint8", nyu_image),
            ("depths", "single", nyu_depth),
            ("rawDepths", "single", nyu_raw_depth),
        ):
            # MATLAB's H×W×3×N is N×3×W×H in HDF5.
            stored = np.stack([image(number).T for number in range(len(frames))])
            file.create_dataset(name, data=stored).attrs["MATLAB_class"] = np.bytes_(matlab_class)
        write_cells(file, "sceneTypes", [frame[0] for frame in frames])
        write_cells(file, "scenes", [frame[1] for frame in frames])
    write_matlab_header(path)
    training = [number for number, frame in enumerate(frames, start=1) if frame[2]]
    testing = [number for number, frame in enumerate(frames, start=1) if not frame[2]]
    columns = {"trainNdxs": training, "testNdxs": testing}
    as_stored = {name: np.array([v], np.uint16).T for name, v in columns.items()}
    savemat(root / "splits.mat", as_stored)
    return root


def write_matlab_header(path: Path) -> None:
    """What MATLAB 7.3 writes before the HDF5 part of a file."""
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Tue Aug 21 23:35:28 2012 HDF5"
    with path.open("r+b") as file:
        file.write(text.ljust(116) + bytes(8) + b"\x00\x02IM")


def write_cells(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    """An N×1 cell array of strings as MATLAB 7.3 keeps it."""
    references = np.empty((1, len(texts)), h5py.ref_dtype)
    for number, text in enumerate(texts):
        codes = np.frombuffer(text.encode("utf-16-le"), "<u2").reshape(-1, 1)
        cell = file.create_dataset(f"#refs#/{name}{number}", data=codes)
        cell.attrs["MATLAB_class"] = np.bytes_("char")
        references[0, number] = cell.ref
    file.create_dataset(name, data=references).attrs["MATLAB_class"] = np.bytes_("cell")


def torn_png(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def jpeg_named_png(path: Path) -> None:
    Image.new("L", SHAPE[::-1]).save(path, format="JPEG")
