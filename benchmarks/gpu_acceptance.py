"""What must hold on a machine with an NVIDIA GPU: runs every section, prints one table, writes JSON; exit code 1 if a check fails.

    pip install --no-deps -e .                             # if the package is not installed yet
    python benchmarks/gpu_acceptance.py [--json results.json] [--section kernel]...
    python benchmarks/gpu_acceptance.py --dry-run              the same code on the CPU, tiny: its figures are meaningless

A section is a function in ``mgvq_export.benchmarks.gpu`` that yields rows. One that finds at its start that it cannot run here (TensorRT is not
installed, say) is listed with the reason; one that stops later counts as failed, whatever the reason, and the next ones still
run. Under MGVQ_REQUIRE_GPU=1 sections that need no more than a GPU and PyTorch must run.
"""

import argparse
import dataclasses
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Section -> its function. The first ones need no more than a GPU and, but for the kernel, PyTorch.
SECTIONS = {
    "kernel": "kernel:kernel_section",
    "argmin": "kernel:torch_section",
    "network": "network:network_section",
    "peers": "network:peers_section",
    "onnxruntime": "bundle:onnxruntime_section",
    "tensorrt": "engines:tensorrt_section",
}
REQUIRED = ("kernel", "argmin", "network", "peers")


def run_section(name: str, options: Any) -> Iterator[Any]:
    """The section's rows. One that cannot run, or stops, ends with a row that has the reason."""
    from mgvq_export.benchmarks.gpu.report import CannotRun, Row

    module, function = SECTIONS[name].split(":")
    try:
        yield from getattr(importlib.import_module(f"mgvq_export.benchmarks.gpu.{module}"), function)(options)
    except CannotRun as error:
        required = name in REQUIRED and os.environ.get("MGVQ_REQUIRE_GPU") == "1"
        yield Row("cannot run here", str(error), ok=False if required else None)
    except Exception as error:  # the other sections still run
        traceback.print_exc()
        yield Row("broke off", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", ok=False)


def parse_options(arguments: argparse.Namespace, folder: Path) -> Any:
    """Options of the sections from those of the command line; bundle and engines are made in ``folder``."""
    from mgvq_export.benchmarks.gpu.report import GpuOptions
    from mgvq_export.core.spec import variant
    from mgvq_export.model.demo import DEMO_SPEC

    if arguments.dry_run:
        tiny = {"check": (32, 32), "small": (64, 64), "large": (64, 96), "tile": (72, 72)}
        return GpuOptions("cpu", DEMO_SPEC, repeats=1, ceiling=64, compiler="aot_eager", folder=folder, **tiny)
    return GpuOptions(spec=variant(arguments.model), repeats=arguments.repeat, folder=folder)


def main() -> int:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file, after every row")
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="only this section (may be repeated)")
    parser.add_argument(
        "--model", default="mgvq-f16c32-g8", help="released variant; its weights are synthetic [default: %(default)s]"
    )
    parser.add_argument(
        "--repeat", type=int, default=20, help="timed runs of each, of engines 5 times as many [default: %(default)s]"
    )
    parser.add_argument("--folder", type=Path, help="where to make bundle and engines, and find them again [default: temporary]")
    parser.add_argument("--dry-run", action="store_true", help="run on the CPU, tiny, to see that everything works")
    arguments = parser.parse_args()
    from mgvq_export.benchmarks.gpu.machine import describe_run
    from mgvq_export.core.files import atomic_write_bytes

    document: dict[str, Any] = {"run": describe_run(), "dry_run": arguments.dry_run, "rows": []}
    print(json.dumps(document["run"], indent=1))
    with tempfile.TemporaryDirectory() as temporary:
        options = parse_options(arguments, (arguments.folder or Path(temporary)).resolve())
        document["options"] = {"model": options.spec.name, "large": options.large, "small": options.small, "tile": options.tile}
        for name in arguments.section or SECTIONS:
            for row in run_section(name, options):
                print(f"{name:<12} {row}", flush=True)
                document["rows"].append({"section": name, **dataclasses.asdict(row)})
                if arguments.json:  # printed at once: TensorRT's section may take an hour, and be interrupted
                    atomic_write_bytes(arguments.json, (json.dumps(document, indent=1) + "\n").encode())
    failed = sum(row["ok"] is False for row in document["rows"])
    print(f"{len(document['rows'])} rows, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
