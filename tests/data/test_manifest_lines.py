import pyarrow as pa
import pyarrow.parquet
import pytest

from manystream.data.manifest import read_rows
from manystream.data.table import Sample


def written(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_rows_know_their_lines(tmp_path):
    path = written(tmp_path, 'rgb,label\n"a\n.png", bed \n\n,\nb.png,desk\n')
    streams, rows = read_rows(path)
    assert streams == ["rgb"]
    assert [row.where for row in rows] == [f"{path}, line 3", f"{path}, line 6"]
    assert [row.sample for row in rows] == [
        Sample("", {"rgb": "a\n.png"}, "bed", "train"),
        Sample("", {"rgb": "b.png"}, "desk", "train"),
    ]


def test_a_byte_order_mark_and_windows_lines(tmp_path):
    streams, rows = read_rows(written(tmp_path, b"\xef\xbb\xbfrgb,label\r\na.png,bed\r\n"))
    assert streams == ["rgb"]
    assert [row.sample.label for row in rows] == ["bed"]


def test_words_for_nothing_are_words(tmp_path):
    _, rows = read_rows(written(tmp_path, "rgb,label\na.png,NA\nb.png,nan\n"))
    assert [row.sample.label for row in rows] == ["NA", "nan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns ; expected 'label'"),
        ("rgb,depth\na.png,b.png\n", "has the columns rgb, depth; expected 'label'"),
        ("label,split\nbed,train\n", "expected 'label', one for every stream"),
        ("rgb,rgb,label\na.png,b.png,bed\n", "a column named 'rgb'; expected a name for each"),
        ("rgb,,label\na.png,b.png,bed\n", "a column named ''; expected a name for each"),
        ("rgb,label\n", "has no rows"),
        ('rgb,label\n"a.png,bed\n', r"x\.csv, line 2: "),
        ("rgb,label\na.png," + "x" * 200_000, r"x\.csv, line 2: field larger"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_rows(written(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"no manifest at .*x\.csv"):
        read_rows(tmp_path / "x.csv")


def test_parquet_of_numbers_and_nulls(tmp_path):
    path = tmp_path / "x.parquet"
    columns = {"rgb": ["a.png", None], "label": [3, None]}
    pyarrow.parquet.write_table(pa.table(columns), path)
    _, rows = read_rows(path)
    assert [(row.sample.cells["rgb"], row.sample.label) for row in rows] == [
        ("a.png", "3"),
        (None, ""),
    ]
    assert rows[1].where == f"{path}, row 2"


def test_torn_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("torn")
    with pytest.raises(ValueError, match=r"cannot read .*x\.parquet"):
        read_rows(tmp_path / "x.parquet")
