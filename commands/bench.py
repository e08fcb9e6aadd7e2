"""``bench``: how fast a bundle is, and what changed since the last time."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from mgvq_export.commands.options import BACKENDS, BUNDLE, CHECKPOINT, FORCE, TILE, TILINGS, OneOf
from mgvq_export.commands.output import echo_json, echo_table, echo_tables, progress_bar
from mgvq_export.commands.protect import check_targets
from mgvq_export.commands.verb import verb
from mgvq_export.core.errors import InputError


class _BundleFirst(click.Group):
    """A group whose command ``run`` is meant when the first word is none of its commands: ``bench BUNDLE``, ``bench compare``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if difflib.get_close_matches(first, ["compare"], cutoff=0.75) and first != "compare" and not Path(first).exists():
            raise InputError(f"no bundle {first!r}; did you mean bench compare?")
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        command = self.commands["run"]
        command.format_help(click.Context(command, parent=ctx.parent, info_name=ctx.info_name), formatter)


@verb(
    BUNDLE,
    click.option("--size", "sizes", multiple=True, metavar="WxH", help="Image size; may be repeated. [default: 1024x1024]"),
    click.option("--image", type=click.Path(path_type=Path), help="A picture to take as it is, in place of --size."),
    click.option(
        "--backend",
        "backends",
        type=OneOf(BACKENDS),
        multiple=True,
        default=("auto",),
        show_default=True,
        help="May be repeated.",
    ),
    click.option("--precision", "precisions", multiple=True, help="May be repeated. [default: fp32 if the bundle has it]"),
    click.option(
        "--tiling",
        "tilings",
        type=OneOf(TILINGS),
        multiple=True,
        default=("auto",),
        show_default=True,
        help="May be repeated.",
    ),
    TILE,
    click.option("--memory-limit", metavar="SIZE", help="Of each process, such as 6GiB. [default: 80 % of what is free]"),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]"),
    click.option("--against", multiple=True, metavar="PEER,...", help="Other ways to run the network: torch, ...; see above."),
    CHECKPOINT,
    click.option("--repeat", type=click.IntRange(min=1), default=10, show_default=True, help="Timed passes of each."),
    click.option("-o", "--output", type=click.Path(path_type=Path), help="Write all samples here, as JSON."),
    click.option("--plot", type=click.Path(path_type=Path), help="Draw the stages here: .png, .svg or .pdf."),
    FORCE,
)
def run(bundle: Path, output: Path | None, plot: Path | None, force: bool, as_json: bool, **options: Any) -> None:
    """Time BUNDLE from image file to token file and back, by stages; in turns with peers and with a large matrix product.

    Every backend, precision and tiling given runs at every size, each in a process of its own. Peers (--against) are torch,
    torch-channels-last, torch-bf16, torch-compile, whole-graph (each network in one graph), plain-ort (ONNX Runtime as it comes),
    openvino and openvino-bf16 (OpenVINO as it comes).

    \b
    mgvq-export bench bundle --size 2560x1440 --against torch,plain-ort -o before.json --plot before.png
    mgvq-export bench compare before.json after.json     what became slower or larger; bench compare --help
    """
    from mgvq_export.bench.command import run_bench
    from mgvq_export.bench.summary import heading, tables

    inputs = [options["image"]] if options["image"] else []
    check_targets([path for path in (output, plot) if path and path.parent.is_dir()], inputs=inputs, force=force)
    results = run_bench(bundle, output=output, plot=plot, watch=progress_bar, **options)
    if as_json:
        return echo_json(results.to_dict())
    echo_tables(tables(results), between="after")
    click.echo("\n".join([heading(results), *(str(path) for path in (output, plot) if path)]))


@verb(
    click.argument("before", type=click.Path(path_type=Path)),
    click.argument("after", type=click.Path(path_type=Path)),
    click.option("--threshold", type=float, default=0.1, show_default=True, help="Smallest change that counts: 0.1 is a tenth."),
    click.option("--force", is_flag=True, help="Compare results of different machines, bundles or settings too."),
)
def compare(before: Path, after: Path, threshold: float, force: bool, as_json: bool) -> None:
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
        echo_table(found.table())
        click.echo("\n".join(found.remarks()))
    found.raise_if_regressed()


bench = _BundleFirst(
    "bench",
    commands=[run, compare],
    help="Time BUNDLE by stages, backends and sizes, beside peers; compare two such results.",
)
