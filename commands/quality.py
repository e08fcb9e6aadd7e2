"""The verbs that measure: does a bundle compute what its network computes, how well, how fast, and in which precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.common import BUNDLE, MAX_PIXELS, RUN_OPTIONS, main, parse_tile, tokenizer_options, verb
from mgvq_export.commands.output import echo_json, echo_table, progress_bar


@verb(
    BUNDLE,
    click.argument("images", nargs=-1, type=click.Path(path_type=Path)),
    click.option("--backend", default="auto", show_default=True, help="Backend to verify."),
    click.option("--checkpoint", help="What the bundle was exported from. [default: the file it was exported from]"),
    click.option("--only", multiple=True, metavar="QUESTION", help="Ask this question only; may be repeated."),
    click.option("--bisect", is_flag=True, help="Also say at which nodes of the graphs differences arise."),
    click.option(
        "--report",
        "reports",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Write a report: .html (one page with pictures and charts), .md or .json; may be repeated.",
    ),
)
def verify(bundle: Path, images: tuple[Path, ...], bisect: bool, as_json: bool, debug: bool, **options: Any) -> None:
    """Check that BUNDLE computes what its network computes, on IMAGES or on three sample photos.

    \b
    Questions: network, precision, backend, quantizer, decoder, graphs, batch, tiling, round-trip.
    mgvq-export verify bundle --only network --only tiling photo.jpg
    mgvq-export verify bundle --report report.html
    """
    from mgvq_export.parity.verify import find_origins
    from mgvq_export.parity.verify import verify as verify_bundle

    with progress_bar("verify", 14 if options["reports"] else 9) as update:
        report = verify_bundle(bundle, images, progress=update, **options)
    origins = find_origins(bundle, images, checkpoint=options["checkpoint"]) if bisect else None
    if as_json:
        echo_json(report.to_dict() | ({"bisect": origins.to_dict()} if origins else {}))
    else:
        echo_table(*report.table())
        click.echo(report.summary())
        if origins:
            click.echo("\n" + "\n".join(origins.summary))
            if origins.origins:
                echo_table(*origins.table(), title="Differences arise at")
    report.raise_if_failed()


@verb(
    BUNDLE,
    click.argument("dataset", type=click.Path(path_type=Path)),
    *RUN_OPTIONS,
    click.option("--size", metavar="WxH", help="Crop in pixels. [default: that of the declared benchmark, else 256x256]"),
    click.option("--groups", metavar="N,N", help="Decode with so many groups each. [default: 1, 2, 4, ... and all]"),
    click.option("--metric", "metrics", multiple=True, help="psnr, ssim, lpips or rfid; may be repeated. [default: all]"),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take a sample of N images."),
    click.option("--seed", type=int, default=0, show_default=True, help="Which sample."),
    click.option("--root", type=click.Path(path_type=Path), help="Folder of a JSON list's paths. [default: the list's own]"),
    click.option("--dataset", "declared", help="The benchmark DATASET is: imagenet-val or uhdbench. [default: none]"),
    MAX_PIXELS,
    resumes=True,
)
def eval(bundle: Path, dataset: Path, output: Path, as_json: bool, debug: bool, **options: Any) -> None:
    """Reconstruct the images of DATASET (a folder or a JSON list) and measure: PSNR, SSIM, LPIPS, rFID, use of the codebook.

    Run the same command again to go on with an evaluation that was stopped.

    \b
    mgvq-export eval bundle photos -o scores
    mgvq-export eval bundle ILSVRC2012/val -o scores --dataset imagenet-val
    mgvq-export eval bundle UHDBench/UHDBench.json -o scores --size 2560x1440 --limit 100
    """
    from mgvq_export.evaluation.command import EvaluationOptions, run_evaluation

    wanted = EvaluationOptions(run=tokenizer_options(options), **options)
    results, files = run_evaluation(bundle, dataset, output, wanted, watch=progress_bar)
    if as_json:
        return echo_json(results.to_dict() | {"files": [str(file) for file in files]})
    for title, table in results.tables():
        echo_table(*table, title=title)
        click.echo()
    click.echo("\n".join([*results.remarks(), *map(str, files)]))


class _BundleFirst(click.Group):
    """A group whose command ``run`` is meant when the first word is none of its commands: ``bench BUNDLE``, ``bench compare``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        command = self.commands["run"]
        command.format_help(click.Context(command, parent=ctx.parent, info_name=ctx.info_name), formatter)


bench = _BundleFirst("bench", help="Time BUNDLE by stages, backends and sizes, beside peers; compare two such results.")
main.add_command(bench)


@verb(
    BUNDLE,
    click.option("--size", "sizes", multiple=True, metavar="WxH", help="Image size; may be repeated. [default: 1024x1024]"),
    click.option("--image", type=click.Path(path_type=Path), help="A picture to take as it is, in place of --size."),
    click.option("--backend", "backends", multiple=True, default=("auto",), show_default=True, help="May be repeated."),
    click.option("--precision", "precisions", multiple=True, help="May be repeated. [default: fp32 if the bundle has it]"),
    click.option("--tiling", "tilings", multiple=True, default=("auto",), show_default=True, help="May be repeated."),
    click.option("--tile", metavar="N|HxW", help="Size of the windows in pixels. [default: what the memory limit allows]"),
    click.option("--memory-limit", metavar="SIZE", help="Of each process, such as 6GiB. [default: 80 % of what is free]"),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]"),
    click.option("--against", multiple=True, metavar="PEER,...", help="Other ways to run the network: torch, ...; see above."),
    click.option("--checkpoint", help="For torch: what the bundle was exported from. [default: the file it was exported from]"),
    click.option("--repeat", type=click.IntRange(min=1), default=10, show_default=True, help="Timed passes of each."),
    click.option("-o", "--output", type=click.Path(path_type=Path), help="Write all samples here, as JSON."),
    click.option("--plot", type=click.Path(path_type=Path), help="Draw the stages here: .png, .svg or .pdf."),
    group=bench,
)
def run(bundle: Path, output: Path | None, plot: Path | None, as_json: bool, debug: bool, **options: Any) -> None:
    """Time BUNDLE from image file to token file and back, by stages; in turns with peers and with a large matrix product.

    Every backend, precision and tiling given runs at every size, each in a process of its own. Peers (--against) are torch,
    torch-channels-last, torch-compile, whole-graph (each network in one graph) and plain-ort (ONNX Runtime as it comes).

    \b
    mgvq-export bench bundle --size 2560x1440 --against torch,plain-ort -o before.json --plot before.png
    mgvq-export bench compare before.json after.json     what became slower or larger; bench compare --help
    """
    from mgvq_export.bench.command import run_bench
    from mgvq_export.bench.summary import heading, tables

    options["tile"] = parse_tile(options["tile"])
    results = run_bench(bundle, options, output=output, plot=plot, watch=progress_bar)
    if as_json:
        return echo_json(results.to_dict())
    for title, table in tables(results):
        echo_table(*table, title=title)
        click.echo()
    click.echo("\n".join([heading(results), *(str(path) for path in (output, plot) if path)]))


@verb(
    click.argument("before", type=click.Path(path_type=Path)),
    click.argument("after", type=click.Path(path_type=Path)),
    click.option("--threshold", type=float, default=0.1, show_default=True, help="Smallest change that counts: 0.1 is a tenth."),
    click.option("--force", is_flag=True, help="Compare results of different machines, bundles or settings too."),
    group=bench,
)
def compare(before: Path, after: Path, threshold: float, force: bool, as_json: bool, debug: bool) -> None:
    """Say what became slower or larger from BEFORE to AFTER, two files that bench -o wrote; exit code 1 if something did.

    A time counts when it grew by more than the threshold and its 95 % interval lies above 1; files and parts of stages are shown
    in brackets and do not count.

    \b
    mgvq-export bench compare before.json after.json
    """
    from mgvq_export.bench.compare import compare_files

    found = compare_files(before, after, threshold=threshold, force=force)
    if as_json:
        echo_json(found.to_dict())
    else:
        echo_table(*found.table())
        click.echo("\n".join(found.remarks()))
    found.raise_if_regressed()


@verb(
    BUNDLE,
    click.argument("images", nargs=-1, type=click.Path(path_type=Path)),
    click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The plan, a JSON file."),
    click.option("--precision", default="int8", show_default=True, help="fp16, int8, or fp8 (experimental)."),
    click.option("--checkpoint", help="What the bundle was exported from. [default: the file it was exported from]"),
    click.option("--min-code-agreement", type=float, help="Share of codes equal to fp32's. [default: 0.985; fp16: 0.99]"),
    click.option("--min-psnr", type=float, help="dB, decoder against fp32 on the same codes. [default: 38; fp16: 50]"),
    click.option("--max-psnr-drop", type=float, help="dB lost against the photos. [default: 0.15; fp16: 0.01]"),
    click.option(
        "--parts", default="decoder", show_default=True, help="What goes into 8 bits: decoder, encoder, or both with a comma."
    ),
    click.option("--base", default="fp16", show_default=True, help="Type of the rest in an 8-bit plan: fp16 or fp32."),
    click.option(
        "--measured-islands", is_flag=True, help="Norms and attention may be fp16; only for images no larger than a window."
    ),
    click.option(
        "--held-out",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Image or folder to measure on; may be repeated. [default: sample photos]",
    ),
    click.option(
        "--windows", type=int, default=64, show_default=True, help="Windows, squares cut from IMAGES, that ranges are taken from."
    ),
    click.option("--window-size", type=int, default=256, show_default=True, help="Their side in pixels."),
    click.option("--search-windows", type=int, default=8, show_default=True, help="How many of them plans are measured on."),
    click.option(
        "--margin",
        type=float,
        default=0.25,
        show_default=True,
        help="Share of the allowed loss to keep in hand for other images.",
    ),
    click.option("--name", help="Of the plan, and of its folder in a bundle. [default: the precision]"),
    click.option(
        "--report-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Report, plots, state of an interrupted run. [default: <plan>-report beside the plan]",
    ),
    resumes=True,
)
def calibrate(bundle: Path, images: tuple[Path, ...], output: Path, as_json: bool, debug: bool, **options: Any) -> None:
    """Choose a precision for every node by measuring on IMAGES (files and folders), and write the plan.

    \b
    mgvq-export calibrate bundle photos -o int8.json --min-psnr 45
    mgvq-export export checkpoint.pt -o bundle-int8 --precision fp32 --plan int8.json

    Exit code 1: the plan misses its budgets on the held-out images; it is written all the same. Run the same command again to go
    on with a calibration that was stopped.
    """
    from mgvq_export.calibration.report import run as run_calibration

    with progress_bar("calibrate", 1000) as update:
        found = run_calibration(bundle, images, output, options, progress=lambda step, share: update(step, 1000 * share))
    if as_json:
        echo_json(found.facts)
    else:
        for title, columns, rows in found.tables:
            echo_table(columns, rows, title=title)
            click.echo()
        click.echo("\n".join([*found.notes, *map(str, found.files)]))
    found.raise_if_failed()
