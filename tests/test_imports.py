"""What an import loads, and which room of the package may import from which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import manystream

PACKAGE = Path(manystream.__file__).parent
HEAVY = (
    "PIL",
    "h5py",
    "jinja2",
    "jsonargparse",
    "lightning",
    "matplotlib",
    "pyarrow",
    "rich",
    "safetensors",
    "scipy",
    "tensorboard",
    "tifffile",
    "torchmetrics",
    "yaml",
)

NOBODY: set[str] = set()
CORE = {"choices", "extras", "files", "functional", "presence", "batch"}
BELOW_DATA = CORE | {"dropout", "layers", "models", "tasks", "graphs", "memory"}
MAY_IMPORT = {
    "choices": NOBODY,
    "extras": NOBODY,
    "files": NOBODY,
    "lazy": {"extras"},
    "_version": NOBODY,
    "presence": NOBODY,
    "batch": {"presence"},
    "dropout": {"choices", "presence"},
    "functional": {"presence"},
    "layers": CORE,
    "models": CORE | {"layers"},
    "tasks": {"presence", "batch"},
    "graphs": {"functional", "batch", "tasks"},
    "memory": CORE | {"layers", "models", "tasks", "graphs"},  # to tell what each part keeps
    "data": {"choices", "extras", "files", "lazy", "presence", "batch", "dropout"},
    "evaluation": {"lazy", "presence", "batch", "dropout", "models", "tasks", "memory", "data"},
    "training": {*BELOW_DATA, "lazy", "data", "evaluation"},
    "model": {"choices", "batch", "models", "tasks", "evaluation", "training"},
    "cli": {*BELOW_DATA, "data", "evaluation", "training", "model", ""},
    "": {*CORE, "lazy", "dropout", "layers", "models", "tasks", "graphs", "model"},
}
"""Rooms that each room may import from, besides itself; "" is the package's ``__init__``."""


def modules(tree: ast.AST) -> set[str]:
    """Full names of what a module imports, in functions and for the type checker too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names.add(node.module)
            if node.module == "manystream":  # `from manystream import layers` means the room
                names |= {f"manystream.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str:
    """``"data"`` for manystream.data.folder, ``""`` for what ``__init__`` itself offers."""
    _, _, inside = module.partition("manystream.")
    room = inside.partition(".")[0]
    return room if room in MAY_IMPORT else ""


def forbidden(room: str, source: str) -> set[str]:
    """Imports of a module of a room that go against the direction."""
    allowed = MAY_IMPORT[room] | {room}
    ours = {name for name in modules(ast.parse(source)) if name.split(".")[0] == "manystream"}
    return {name for name in ours if room_of(name) not in allowed}


def files() -> list[tuple[str, Path]]:
    """Every module of the package and its room."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).with_suffix("").as_posix()
        found.append(("" if inside == "__init__" else inside.split("/")[0], path))
    return found


def test_every_module_is_in_a_room():
    assert {room for room, _ in files()} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_the_direction_of_imports(room):
    broken = {
        str(path.relative_to(PACKAGE)): names
        for of, path in files()
        if of == room and (names := forbidden(room, path.read_text(encoding="utf-8")))
    }
    assert broken == {}


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("data", "from manystream.models import StreamResNet"),
        ("data", "import manystream.training.fit"),
        ("data", "def f():\n    from manystream import layers"),
        ("layers", "from manystream.models.resnet import BLOCKS"),
        ("training", "from manystream.model import create_model"),
        ("evaluation", "from manystream.training import FitOptions"),
        ("tasks", "from manystream.models import StreamNetwork"),
        ("models", "from manystream.tasks import Task"),
        ("training", "import manystream"),
        ("models", "if TYPE_CHECKING:\n    from manystream.training import History"),
        ("functional", "from manystream.batch import StreamBatch"),
    ],
)
def test_an_import_against_the_direction_is_seen(room, source):
    assert forbidden(room, source)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("data", "import torch\nfrom manystream.batch import StreamBatch"),
        ("data", "from manystream.data.folder import folder"),
        ("cli", "from manystream import __version__"),
        ("", "from manystream import functional, layers"),
        ("model", "def f():\n    from manystream.training import fit"),
    ],
)
def test_an_import_in_the_direction_is_not(room, source):
    assert forbidden(room, source) == set()


def loaded_by(statement: str) -> set[str]:
    """Modules that a statement loads in a fresh process, and the packages that they are of."""
    script = f"import sys; had = set(sys.modules); {statement}; print(*set(sys.modules) - had)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = run.stdout.split()
    return {*names, *(name.partition(".")[0] for name in names)}


def test_importing_the_package_loads_nothing_of_others():
    packages = {name.partition(".")[0] for name in loaded_by("import manystream")}
    assert packages <= {"manystream", *sys.stdlib_module_names}


def test_networks_need_torch_and_numpy_only_and_no_compiler():
    loaded = loaded_by("import manystream as ms; ms.create_model, ms.GraphedStep, ms.tasks")
    assert {"torch", "numpy"} <= loaded
    assert not loaded & {*HEAVY, "torch._dynamo", "triton"}


def test_what_a_process_loads_is_seen():
    assert {"PIL", "yaml"} <= loaded_by("import yaml, PIL.Image")


def test_evaluation_needs_no_trainer():
    assert loaded_by("import manystream.evaluation").isdisjoint({"lightning", "pytorch_lightning"})
