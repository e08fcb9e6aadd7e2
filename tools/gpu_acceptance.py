"""What must hold on a machine with an NVIDIA GPU: runs every section, prints one table, writes JSON; exit code 1 if a check fails.

    python tools/gpu_acceptance.py [--json results.json] [--section kernel]...

A section is a function in ``mgvq_export.bench`` that returns rows with ``check``, ``ok``, ``value`` and ``unit``; a section that
cannot run here (TensorRT is not installed, say) is listed with the reason.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

SECTIONS = {"kernel": "mgvq_export.bench.gpu_kernel:kernel_section"}


def run_section(name: str) -> list[dict]:
    """The section's rows; one row with the reason when it cannot run, which fails under MGVQ_REQUIRE_GPU=1."""
    from mgvq_export.errors import BackendError

    module, function = SECTIONS[name].split(":")
    try:
        rows = getattr(importlib.import_module(module), function)()
    except BackendError as error:
        failed = False if os.environ.get("MGVQ_REQUIRE_GPU") == "1" else None
        rows = [{"check": "cannot run here", "ok": failed, "value": str(error), "unit": ""}]
    return [{"section": name, **row} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--section", action="append", choices=sorted(SECTIONS), help="only this section (may be repeated)")
    arguments = parser.parse_args()
    rows = [row for name in arguments.section or SECTIONS for row in run_section(name)]
    for row in rows:
        verdict = {True: "ok", False: "FAIL", None: ""}[row["ok"]]
        value = f"{row['value']:.1f}" if isinstance(row["value"], float) else row["value"]
        print(f"{row['section']:<10} {row['check']:<60} {verdict:<5} {value} {row['unit']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    failed = sum(row["ok"] is False for row in rows)
    print(f"{len(rows)} rows, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
