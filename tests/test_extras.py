"""After a plain ``pip install manystream`` there are torch and numpy, and a word about the rest."""

import re
import subprocess
import sys
from importlib.metadata import requires

import pytest

SENTENCE = 'pip install "manystream[train]"'
IMPORTED_AS = {"pillow": "PIL"}

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def optional_packages() -> set[str]:
    """Import names of what the extra installs, and of some that they bring along."""
    extra = [line for line in requires("manystream") or () if "extra == 'train'" in line]
    names = {re.split(r"[^\w-]", line)[0] for line in extra}
    assert len(names) > 10
    return {IMPORTED_AS.get(name, name) for name in names} | {"yaml", "pytorch_lightning"}


def run_without(packages: set[str], script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that finds none of these packages."""
    command = [sys.executable, "-c", f"{BLOCK.format(packages=packages)}\n{script}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


CALLS = [
    "model.fit(batches, epochs=1)",
    "model.fit(batches, epochs=1, out_dir='out', modality_dropout=True)",
    "model.evaluate(batches)",
    "model.evaluate(batches, blanked_streams={'1'})",
    "model.evaluate_classes(batches)",
    "model.evaluate_conditions(batches)",
    "model.predict(batches)",
    "model.find_batch_size(batches)",
    "model.save('m.safetensors')",
    "ms.load_model(path)",
    "ms.models.load_original(path)",
    "from manystream.training import fit",
    "from manystream.evaluation import ClassTable",
    "from manystream.data import training_data",
    "from manystream.data.options import DataOptions",
    "import manystream.data.nyu",
    "from manystream.cli.output import print_subsets",
    "from manystream.cli.options import TrainOptions",
]

NEEDS_MORE = """
import torch
import manystream as ms

batches = [(torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 16, 16), torch.tensor([0, 1]))]
model = ms.create_model(streams=[3, 1], num_classes=2, width=0.03)
print(tuple(model(list(batches[0][:2])).shape))
path = {path!r}
for call in {calls!r}:
    try:
        exec(call)
    except ImportError as error:
        print(error)
    else:
        print("was done")
"""


def test_the_core_works_and_what_needs_more_says_so(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(bytes(64))
    done = run_without(optional_packages(), NEEDS_MORE.format(path=str(path), calls=CALLS))
    assert done.returncode == 0, done.stderr
    shape, *said = done.stdout.splitlines()
    assert shape == "(2, 2)"
    for call, line in zip(CALLS, said, strict=True):
        assert line.startswith("No module named "), call
        assert SENTENCE in line, call


COMMANDS = """
from manystream.cli import main
for words in ["--help"], ["train"], ["train", "--help"], []:
    assert main(words) == 2
import runpy
sys.argv = ["manystream", "--help"]
runpy.run_module("manystream.cli", run_name="__main__")
"""


def test_the_command_line_says_what_to_install():
    done = run_without(optional_packages(), COMMANDS)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    said = done.stderr.splitlines()
    assert len(said) == 5
    assert all(line.startswith("error: No module named ") and SENTENCE in line for line in said)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("torchmetrics", ["evaluate", "--model={root}/none"]),
        ("h5py", ["data", "check", "--data.format=nyu", "--data.root={root}"]),
    ],
)
def test_a_single_package_that_lacks_is_named(tmp_path, package, words):
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"x")
    words = [word.format(root=tmp_path) for word in words]
    script = f"from manystream.cli import main\nsys.exit(main({words}))"
    done = run_without({package}, script)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"No module named '{package}'" in done.stderr
    assert SENTENCE in done.stderr


def test_the_core_asks_for_no_extra():
    script = "import manystream as ms\ntry:\n    ms.create_model\nexcept ImportError as e: print(e)"
    done = run_without({"torch"}, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "No module named 'torch'\n"
