"""The house rules: which way imports point, and what a light start must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "mgvq_export"

# Each room and what it may stand on, besides itself. Why: the run floor must work without torch, and a lower room that
# knows an upper one cannot be tested, shipped or understood alone.
MAY_IMPORT = {
    "core": set(),
    "ops": {"core"},
    "model": {"core"},
    "runtime": {"core", "ops"},
    "export": {"core", "ops", "model"},
    "parity": {"core", "ops", "runtime"},
    "evaluation": {"core", "ops", "model", "export", "runtime", "parity"},
    "bench": {"core", "ops", "runtime", "parity"},
    # It tries plans on the graphs that export would write; what export needs of it is data, the plan.
    "calibration": {"core", "ops", "model", "export", "runtime", "parity"},
    "serving": {"core", "ops", "runtime"},
    "dataset": {"core", "ops", "runtime", "evaluation"},  # it finds and crops images as an evaluation does
    "inspection": {"core", "ops", "model", "runtime"},
}
TOP = {"__init__", "__main__", "cli", "commands", "benchmarks"}  # may import everything
# Rooms that may reach into the build floor inside a function, where torch is optional.
LATE = {
    "parity": {"model", "export"},
    "bench": {"model", "export"},
    "inspection": {"export", "bench", "calibration"},  # it describes the files that these write
}


def modules() -> list[Path]:
    rooms = sorted({*MAY_IMPORT, *TOP})
    return sorted(ROOT.glob("*.py")) + [path for name in rooms for path in sorted((ROOT / name).glob("**/*.py"))]


def imported_rooms(path: Path, *, late: bool) -> set[str]:
    """Rooms imported at the top of a module (``late``: anywhere), type-checking imports aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    nodes = ast.walk(tree) if late else iter(tree.body)
    for node in nodes:
        if id(node) in skipped:
            continue
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import; write {PACKAGE}.… so that rooms can be seen"
            names = [f"{node.module}.{alias.name}" if node.module == PACKAGE else str(node.module) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room in TOP:
        return
    for late in (False, True):
        allowed = MAY_IMPORT[room] | {room} | (LATE.get(room, set()) if late else set())
        wrong = imported_rooms(path, late=late) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}: {room} may stand on {sorted(MAY_IMPORT[room])} only"


LONGEST = 350  # lines of a module


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_readable(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines, more than {LONGEST}; split it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_public_callables_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    found = [node for scope in (tree, *classes) for node in scope.body]
    public = [node for node in found if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")]
    # What a network's block computes is said at its class, as PyTorch does; an overload is documented by the function it is of.
    missing = [
        node.name
        for node in public
        if not ast.get_docstring(node)
        and node.name != "forward"
        and not any(isinstance(one, ast.Name) and one.id == "overload" for one in node.decorator_list)
    ]
    assert not missing, f"{path.relative_to(ROOT)}: say in a docstring what {', '.join(missing)} gives, takes and raises"


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return {name.split(".")[0] for name in found.stderr.split()}


HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime_extensions",
    "numba",
    "PIL",
    "tensorrt",
    "matplotlib",
    "scipy",
    "safetensors",
    "pyarrow",
    "webdataset",
    "ray",
}


def test_import_and_help_are_light() -> None:
    assert not loaded_by("import mgvq_export") & HEAVY
    helped = loaded_by(
        "from mgvq_export.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code"
    )
    assert not helped & HEAVY


def test_running_needs_no_torch(tiny_bundle, tmp_path: Path) -> None:
    """Encode and decode in a process where importing torch or onnx fails."""
    code = f"""
class Blocked:
    def find_spec(self, name, *_):
        if name.split('.')[0] in ('torch', 'onnx', 'tensorrt'):
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from mgvq_export import Tokenizer
with Tokenizer.open({str(tiny_bundle.path)!r}) as tokenizer:
    image = np.zeros((40, 24, 3), np.uint8)
    assert tokenizer.decode(tokenizer.encode(image)).shape == image.shape
"""
    assert not loaded_by(code) & {"torch", "onnx"}


def test_no_module_shadows_the_standard_library() -> None:
    names = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert not (names - {"__init__"}) & set(sys.stdlib_module_names)
