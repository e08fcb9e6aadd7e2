"""The command line: verbs only. A command parses its options, makes one library call and prints what came of it.

The verbs that measure (verify, eval, bench, calibrate) are in ``commands.quality``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from mgvq_export.commands import quality  # noqa: F401 (its verbs join the same group)
from mgvq_export.commands.common import (
    ALLOW_HOST_CODE,
    BUNDLE,
    GROUPS,
    IMAGES,
    MAX_PIXELS,
    RUN_OPTIONS,
    Run,
    main,
    parse_tile,
    parse_workspace,
    verb,
)
from mgvq_export.commands.output import Lines, echo_json, echo_table, progress_bar


@verb()
def models(as_json: bool, debug: bool) -> None:
    """List the released variants and the packaged demo model."""
    from mgvq_export.inspection.describe import known_models

    rows = known_models()
    if as_json:
        return echo_json(rows)
    columns = ("name", "f", "groups", "codes/group", "group dim", "bits/token", "bits/pixel", "checkpoint")
    echo_table(columns, [[str(row[key]) for key in row] for row in rows])


@verb(
    click.argument("checkpoint"),
    click.option(
        "-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Bundle folder to write."
    ),
    click.option("--variant", help="Model name, or a JSON or YAML file with a spec. [default: read off the checkpoint]"),
    click.option("--precision", multiple=True, default=("fp32",), show_default=True, help="fp32 or fp16; may be repeated."),
    click.option(
        "--plan",
        "plans",
        multiple=True,
        type=click.Path(path_type=Path),
        help="A further precision, as calibrate wrote it; may be repeated.",
    ),
    click.option("--force", is_flag=True, help="Replace an existing bundle."),
)
def export(
    checkpoint: str,
    output: Path,
    variant: str | None,
    precision: tuple[str, ...],
    plans: tuple[Path, ...],
    force: bool,
    as_json: bool,
    debug: bool,
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
    target = check_target(output, precision, loaded_plans, replace=force)  # before a download
    loaded = load_checkpoint(checkpoint, variant)
    steps = 0
    with progress_bar("export", len(Part) * (len(set(precision)) + len(plans))) as update:

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


@verb(
    BUNDLE,
    click.option("--precision", default="fp16", show_default=True, help="Graphs to build from."),
    click.option("--part", "parts", multiple=True, help="One engine only; may be repeated. [default: all that images need]"),
    click.option("--shape", "shapes", multiple=True, metavar="HxW", help="Image size; may be repeated, one profile each."),
    click.option("--tile", metavar="HxW", help="Build trunks for windows of this size, halo included."),
    click.option("--batch", type=int, default=1, show_default=True, help="Largest batch of windows (with --tile) or images."),
    click.option("--builder-level", type=int, default=3, show_default=True, help="0: fastest build, 5: fastest engine."),
    click.option("--workspace", metavar="SIZE", help="Largest scratch memory, such as 4GiB. [default: all the GPU has]"),
    click.option("--version-compatible", is_flag=True, help="Engines load under later TensorRT versions too."),
    click.option("--hardware-compatible", is_flag=True, help="Engines run on other GPUs from Ampere on too."),
    click.option("--detailed", is_flag=True, help="Keep every layer's details for the engine inspector."),
)
def build(
    bundle: Path, shapes: tuple[str, ...], tile: str | None, workspace: str | None, as_json: bool, debug: bool, **options: Any
) -> None:
    """Build TensorRT engines into BUNDLE, on the GPU that is to run them; those that still fit are kept.

    Give all sizes an engine is to hold in one command: building it anew replaces those it had.

    \b
    mgvq-export build bundle --shape 1440x2560                whole images
    mgvq-export build bundle --shape 1440x2560 --tile 768x768 trunks in windows
    """
    from mgvq_export.core.bundle import Bundle
    from mgvq_export.export.engines.build import Engine, build_engines
    from mgvq_export.export.engines.options import BuildOptions, parse_size

    wanted = BuildOptions(
        shapes=tuple(parse_size(shape) for shape in shapes),
        tile=parse_tile(tile),
        workspace=parse_workspace(workspace),
        **options,
    )
    lines = Lines(as_json)

    def finished(engine: Engine) -> None:
        note = "kept" if engine.reused else "; ".join(engine.reasons)
        lines.add(engine.path, engine.seconds, note, part=str(engine.part), reused=engine.reused, reasons=engine.reasons)

    with progress_bar("build", len(wanted.wanted_parts)) as update:
        build_engines(
            Bundle.open(bundle),
            wanted,
            progress=lambda step: update(str(step), step.index + step.share_of_engine),
            finished=finished,
        )
    lines.close()


@verb(
    BUNDLE,
    IMAGES,
    *RUN_OPTIONS,
    click.option("--packed", is_flag=True, help="Pack codes to their bits."),
    MAX_PIXELS,
)
def encode(bundle: Path, images: tuple[Path, ...], output: Path, packed: bool, max_pixels: int | None, **options: Any) -> None:
    """Turn images into token files, <name>.safetensors."""
    run = Run(bundle, images, output, ".safetensors", options)
    for index, path in enumerate(images):
        start = time.perf_counter()
        image = run.read(path, max_pixels)
        plan = run.tokenizer.encode_plan(*image.shape[:2])
        tokens = run.tokenizer.encode(image, plan=plan, progress=run.windows(index, path))
        tokens.save(run.target(path), packed=packed)
        height, width = tokens.image_size
        note = f"{width}x{height} -> {tokens.groups} x {tokens.grid_size[1]}x{tokens.grid_size[0]} codes, {plan}"
        facts = {"image_size": tokens.image_size, "codes": tokens.codes.shape, "plan": str(plan)}
        run.lines.add(run.target(path), time.perf_counter() - start, note, **facts)
    run.close()


@verb(
    BUNDLE,
    click.argument("tokens", nargs=-1, required=True, type=click.Path(path_type=Path)),
    *RUN_OPTIONS,
    GROUPS,
)
def decode(bundle: Path, tokens: tuple[Path, ...], output: Path, groups: int | None, **options: Any) -> None:
    """Turn token files into images, <name>.png."""
    from mgvq_export.core.tokens import Tokens
    from mgvq_export.runtime.image_files import write_image

    run = Run(bundle, tokens, output, ".png", options)
    run.tokenizer.check_groups(groups)
    for index, path in enumerate(tokens):
        start = time.perf_counter()
        loaded = Tokens.load(path)
        plan = run.tokenizer.decode_plan(*loaded.image_size)
        image = run.tokenizer.decode(loaded, groups=groups, plan=plan, progress=run.windows(index, path))
        write_image(run.target(path), image)
        note = f"{image.shape[1]}x{image.shape[0]}, {plan}"
        run.lines.add(run.target(path), time.perf_counter() - start, note, image_size=image.shape[:2], plan=str(plan))
    run.close()


@verb(BUNDLE, IMAGES, *RUN_OPTIONS, GROUPS, MAX_PIXELS)
def reconstruct(
    bundle: Path, images: tuple[Path, ...], output: Path, groups: int | None, max_pixels: int | None, **options: Any
) -> None:
    """Encode and decode images, <name>.png, and print the PSNR."""
    from mgvq_export.parity.metrics import psnr
    from mgvq_export.runtime.image_files import write_image

    run = Run(bundle, images, output, ".png", options)
    run.tokenizer.check_groups(groups)
    for index, path in enumerate(images):
        start = time.perf_counter()
        image = run.read(path, max_pixels)
        again = run.tokenizer.decode(run.tokenizer.encode(image, progress=run.windows(index, path)), groups=groups)
        write_image(run.target(path), again)
        psnr_db = psnr(again, image)
        run.lines.add(run.target(path), time.perf_counter() - start, f"{psnr_db:.2f} dB", psnr_db=psnr_db)
    run.close()


@verb(
    click.argument("target"),
    click.option("--trust", is_flag=True, help="Load an engine that lies in no bundle."),
    ALLOW_HOST_CODE,
)
def inspect(target: str, trust: bool, allow_host_code: bool, as_json: bool, debug: bool) -> None:
    """Say what TARGET is and holds: a checkpoint, bundle, token file, ONNX graph, TensorRT engine or precision plan."""
    from mgvq_export.inspection.describe import describe

    facts = describe(target, trust=trust, allow_host_code=allow_host_code)
    if as_json:
        return echo_json(facts.values)
    echo_table(("", ""), [[name, str(value)] for name, value in facts.summary()])
    for title, columns, rows in facts.tables:
        click.echo()
        echo_table(columns, rows, title=title)


@verb()
def doctor(as_json: bool, debug: bool) -> None:
    """Say what is installed, which backends can run here, and how to get the others."""
    from mgvq_export.inspection.doctor import examine

    report = examine()
    if as_json:
        return echo_json(report)
    echo_table(("package", "version", "for"), [[p["name"], p["version"] or "-", p["purpose"]] for p in report["packages"]])
    click.echo()
    rows = [[b["name"], "yes" if b["ready"] else "no", b["detail"]] for b in report["backends"]]
    echo_table(("backend", "ready", ""), rows)


@verb(
    click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-out"), show_default=True)
)
def demo(output: Path, as_json: bool, debug: bool) -> None:
    """Run the main job on the packaged model: export, encode, decode, compare with PyTorch, draw a contact sheet."""
    from mgvq_export.evaluation.demo import run_demo

    result = run_demo(output, say=lambda line: None if as_json else click.echo(line))
    if as_json:
        echo_json(result.facts)
    else:
        for title, columns, rows in result.tables:
            click.echo()
            echo_table(columns, rows, title=title)
    result.raise_if_failed()


if __name__ == "__main__":
    sys.exit(main())
