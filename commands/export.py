"""``export``: a checkpoint becomes a bundle."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mgvq_export.commands.options import OneOf, folder_option
from mgvq_export.commands.output import Lines, progress_bar
from mgvq_export.commands.verb import verb


@verb(
    click.argument("checkpoint"),
    folder_option("Bundle folder to write.", required=True),
    click.option("--variant", help="Model name, or a JSON or YAML file with a spec. [default: read off the checkpoint]"),
    click.option(
        "--precision",
        "precisions",
        type=OneOf(("fp32", "fp16")),
        multiple=True,
        default=("fp32",),
        show_default=True,
        help="May be repeated.",
    ),
    click.option(
        "--plan",
        "plans",
        multiple=True,
        type=click.Path(path_type=Path),
        help="A further precision, as calibrate wrote it; may be repeated.",
    ),
    click.option("--weights", metavar="NAME", help="Which weights, where CHECKPOINT holds several sets, such as ema."),
    click.option("--force", is_flag=True, help="Replace an existing bundle."),
)
def export(
    checkpoint: str,
    output: Path,
    variant: str | None,
    precisions: tuple[str, ...],
    plans: tuple[Path, ...],
    weights: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write CHECKPOINT as a bundle of ONNX graphs.

    CHECKPOINT is a .pt or .safetensors file, a model name (downloaded), hf://owner/repo/file@revision, or demo.

    \b
    mgvq-export export mgvq-f16c32-g8 -o bundle --precision fp32 --precision fp16
    mgvq-export export demo -o bundle --plan plan.json
    """
    from mgvq_export.core.precision_plan import PrecisionPlan
    from mgvq_export.core.spec import Part
    from mgvq_export.export.bundles import check_target, write_bundle
    from mgvq_export.model.checkpoint import load_checkpoint

    start = time.perf_counter()
    loaded_plans = [PrecisionPlan.load(plan) for plan in plans]
    target = check_target(output, precisions, loaded_plans, replace=force)  # before a download
    loaded = load_checkpoint(checkpoint, variant, weights=weights)
    if loaded.others and weights is None:
        others = ", ".join(name or "those at its top level" for name in loaded.others)
        click.echo(
            f"weights {loaded.taken or 'at the top level'} of {checkpoint} taken; it also holds {others}: choose with --weights",
            err=True,
        )
    steps = 0
    with progress_bar("export", len(Part) * (len(set(precisions)) + len(plans))) as update:

        def report(step: str) -> None:
            nonlocal steps
            update(step, steps)
            steps += 1

        bundle = write_bundle(loaded, target, progress=report)
    lines = Lines(as_json)
    experimental = {plan.name for plan in loaded_plans if "fp8" in plan.counts()}
    names = (f"{name} (experimental)" if name in experimental else name for name in bundle.precisions)
    note = f"{bundle.spec.name}, {' + '.join(names)}"
    lines.add(bundle.path, time.perf_counter() - start, note, model=bundle.spec.name, precisions=bundle.precisions)
    lines.close()
