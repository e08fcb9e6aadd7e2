"""``decode``: token files become images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgvq_export.commands.inputs import TOKEN_SUFFIXES, find_jobs
from mgvq_export.commands.options import BUNDLE, FILE_OPTIONS, GROUPS, RUN_OPTIONS, tokenizer_options
from mgvq_export.commands.output import Lines
from mgvq_export.commands.plans import plan_facts
from mgvq_export.commands.run import Work, run_files, standard_bytes, write_to
from mgvq_export.commands.verb import verb

if TYPE_CHECKING:
    import numpy as np

    from mgvq_export.core.tokens import Tokens
    from mgvq_export.runtime.tiling.windows import TrunkPlan
    from mgvq_export.runtime.tokenizer import Tokenizer

    Planned = tuple[TrunkPlan, np.ndarray]


@verb(
    BUNDLE,
    click.argument("tokens", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True)),
    *FILE_OPTIONS,
    *RUN_OPTIONS,
    GROUPS,
)
def decode(
    bundle: Path,
    tokens: tuple[Path, ...],
    output: Path,
    recursive: bool,
    skip_existing: bool,
    force: bool,
    groups: int | None,
    as_json: bool,
    json_lines: bool,
    **options: Any,
) -> None:
    """Turn TOKENS (token files, folders, - for standard input) into images, <name>.png.

    \b
    mgvq-export decode bundle tokens --recursive -o images
    mgvq-export decode bundle photo.safetensors -o images --groups 4
    """
    from mgvq_export.runtime.tokenizer import Tokenizer

    jobs = find_jobs(tokens, output, TOKEN_SUFFIXES, ".png", recursive=recursive)
    lines = Lines(as_json, json_lines=json_lines, output=output)
    with Tokenizer.open(bundle, **tokenizer_options(options)) as tokenizer:
        tokenizer.check_groups(groups)
        run_files(jobs, _work(tokenizer, groups), lines, force=force, skip_existing=skip_existing)


def _work(tokenizer: Tokenizer, groups: int | None) -> Work[Tokens, Planned]:
    from mgvq_export.runtime.image_files import write_image

    def compute(tokens: Sequence[Tokens], progress: Callable[[int, int], None]) -> list[Planned]:
        plans = [tokenizer.decode_plan(*one.image_size) for one in tokens]
        if len(tokens) == 1:
            return [(plans[0], tokenizer.decode(tokens[0], groups=groups, plan=plans[0], progress=progress))]
        return list(zip(plans, tokenizer.decode_batch(tokens, groups=groups, progress=progress), strict=True))

    def describe(_: Tokens, result: Planned) -> tuple[str, dict[str, Any]]:
        plan, image = result
        height, width = image.shape[:2]
        return f"{width}x{height}, {plan}", {"image_size": (height, width), "plan": plan_facts(plan)}

    return Work(
        read=_read,
        compute=compute,
        write=lambda target, result: write_to(target, ".png", lambda file: write_image(file, result[1])),
        describe=describe,
    )


def _read(path: Path) -> Tokens:
    from mgvq_export.core.tokens import Tokens

    data = standard_bytes(path)
    if data is None:
        return Tokens.load(path)
    with tempfile.TemporaryDirectory(prefix="mgvq-") as folder:
        file = Path(folder) / "standard-input.safetensors"
        file.write_bytes(data)
        return Tokens.load(file)
