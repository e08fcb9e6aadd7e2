"""The device memory that engines need, as the builder of TensorRT for RTX plans it, for the released variants. Needs no GPU.

    python -m mgvq_export.benchmarks.engine_memory [--variant NAME]... [--size WxH] [--precision fp16]... [-o FILE]

Each variant is exported with synthetic weights, which do not change it, to a temporary folder (up to 1.3 GB), and its engines are built
for one image. Prints a Markdown table: per part, activation memory in GB (10^9 bytes). The weights' memory comes on top: the file's size.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mgvq_export.core.spec import VARIANTS, Part
from mgvq_export.core.units import parse_size
from mgvq_export.export.bundles import export_bundle
from mgvq_export.export.engines.build import build_engines
from mgvq_export.export.engines.options import BuildOptions
from mgvq_export.model.checkpoint import Checkpoint
from mgvq_export.model.synthetic import synthetic_state_dict

PARTS = (
    Part.ENCODER_TRUNK,
    Part.ENCODER_HEAD,
    Part.ENCODER,
    Part.QUANTIZER,
    Part.DEQUANTIZER,
    Part.DECODER_HEAD,
    Part.DECODER_TRUNK,
    Part.DECODER,
)


def engine_memory(variant: str, precision: str, size: tuple[int, int]) -> dict[str, float]:
    """Activation memory in GB per part of ``variant`` for an image of ``size`` (height, width), and ``build_seconds`` of all."""
    spec = VARIANTS[variant]
    checkpoint = Checkpoint(spec, synthetic_state_dict(spec), "synthetic", Path("synthetic"), "0" * 64)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(checkpoint, Path(folder) / "bundle", precisions=(precision,))
        start = time.perf_counter()
        engines = build_engines(bundle, BuildOptions(precision=precision, parts=PARTS, shapes=(size,), target="rtx"))
        seconds = time.perf_counter() - start
    found = {str(engine.part): (engine.record.activation_bytes or 0) / 1e9 for engine in engines}
    return found | {"build_seconds": seconds}


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown: a row per variant and precision."""
    lines = ["| variant | " + " | ".join(map(str, PARTS)) + " |", "|---" * (len(PARTS) + 1) + "|"]
    for name, found in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{found[str(part)]:.3g}" for part in PARTS) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line in the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="default: all")
    parser.add_argument("--precision", action="append", choices=("fp16", "fp32"), help="default: fp16")
    parser.add_argument("--size", default="2560x1440", metavar="WxH")
    parser.add_argument("-o", "--output", type=Path, help="the figures as JSON; an existing file is added to")
    options = parser.parse_args(arguments)
    results = json.loads(options.output.read_text()) if options.output and options.output.exists() else {}
    for variant in options.variant or VARIANTS:
        for precision in options.precision or ("fp16",):
            results[f"{variant} {precision}"] = engine_memory(variant, precision, parse_size(options.size))
            if options.output:
                options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
