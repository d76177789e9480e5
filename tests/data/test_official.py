import h5py
import numpy as np
import pytest
from scipy.io import savemat

from manystream.data.official import array_shapes, read_numbers, read_strings
from tests.data.official import write_cells, write_matlab_header

TEXTS = ["kitchen", "café", "x"]


@pytest.fixture(params=["5", "7", "7.3"])
def path(request, tmp_path):
    """One cell array and one vector in a file of each version."""
    path = tmp_path / "x.mat"
    if request.param == "7.3":
        with h5py.File(path, "w", userblock_size=512) as file:
            write_cells(file, "texts", TEXTS)
            file["numbers"] = np.array([[3.0, 1.0, 2.0]])
        write_matlab_header(path)
        return path
    cells = np.empty((1, len(TEXTS)), object)
    cells[0] = TEXTS
    values = {"texts": cells, "numbers": np.array([[3.0], [1.0], [2.0]])}
    savemat(path, values, do_compression=request.param == "7")
    return path


def test_strings_and_numbers_of_every_version(path):
    assert read_strings(path, "texts") == TEXTS
    assert read_numbers(path, "numbers") == [3, 1, 2]


def test_a_variable_that_is_not_there(path):
    with pytest.raises(ValueError, match=r"cannot read 'nothing' of the MATLAB file .*x\.mat"):
        read_strings(path, "nothing")


def test_one_string_alone(tmp_path):
    cells = np.empty((1, 1), object)
    cells[0, 0] = "alone"
    savemat(tmp_path / "x.mat", {"texts": cells})
    assert read_strings(tmp_path / "x.mat", "texts") == ["alone"]


def test_numbers_that_are_not_whole(tmp_path):
    savemat(tmp_path / "x.mat", {"numbers": np.array([1.5])})
    with pytest.raises(ValueError, match="not whole numbers"):
        read_numbers(tmp_path / "x.mat", "numbers")


def test_shapes_of_arrays(tmp_path):
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file["a"], file["b"] = np.zeros((2, 3)), np.zeros(4)
    assert array_shapes(tmp_path / "x.mat", ["a", "b"]) == {"a": (2, 3), "b": (4,)}


def test_a_file_that_is_no_matlab_file(tmp_path):
    (tmp_path / "x.mat").write_text("<html>404 not found</html>" * 20)
    with pytest.raises(ValueError, match="get it again"):
        read_numbers(tmp_path / "x.mat", "numbers")
    with pytest.raises(ValueError, match="get it again"):
        array_shapes(tmp_path / "x.mat", ["a"])
