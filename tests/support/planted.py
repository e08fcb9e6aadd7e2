"""Python files that say when they are run, named like modules the program imports."""

from pathlib import Path

MODULES = [
    "_bootlocale",
    "click",
    "collections",
    "csv",
    "encodings",
    "json",
    "logging",
    "mgvq_export",
    "ml_dtypes",
    "msgspec",
    "multiprocessing",
    "numba",
    "numpy",
    "onnx",
    "onnxruntime",
    "os",
    "PIL",
    "pickle",
    "psutil",
    "random",
    "re",
    "rich",
    "safetensors",
    "site",
    "sitecustomize",
    "skimage",
    "socket",
    "struct",
    "subprocess",
    "tempfile",
    "torch",
    "usercustomize",
    "yaml",
]

_RECORD = "executed.txt"


def plant(folder: Path) -> None:
    """Put a module and a package of every name into ``folder``; each records its path in a file there when it is run."""
    for name in MODULES:
        # Nothing but built-ins: an import here could run another planted file.
        record = f"with open({str(folder / _RECORD)!r}, 'a') as file: file.write(__file__ + '\\n')\n"
        (folder / f"{name}.py").write_text(record, encoding="utf-8")
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(record, encoding="utf-8")


def executed(folder: Path) -> list[str]:
    """The planted files in and below ``folder`` that were run."""
    return [line for record in sorted(folder.rglob(_RECORD)) for line in record.read_text(encoding="utf-8").splitlines()]
