"""``decode``: token files become images."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgvq_export.commands.inputs import TOKEN_SUFFIXES, find_jobs
from mgvq_export.commands.options import BUNDLE, FILE_OPTIONS, GROUPS, LAYOUTS, RUN_OPTIONS, OneOf, SizeType, tokenizer_options
from mgvq_export.commands.output import Lines
from mgvq_export.commands.plans import plan_facts
from mgvq_export.commands.run import Work, run_files, standard_bytes, write_to
from mgvq_export.commands.verb import verb
from mgvq_export.core.errors import InputError, TokensError
from mgvq_export.core.types import JsonObject

if TYPE_CHECKING:
    import numpy as np

    from mgvq_export.core.bundle import Bundle
    from mgvq_export.core.tokens import Layout, Tokens
    from mgvq_export.runtime.tiling.windows import TrunkPlan
    from mgvq_export.runtime.tokenizer import Tokenizer

    Planned = tuple[TrunkPlan, np.ndarray]


@verb(
    BUNDLE,
    click.argument("tokens", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True)),
    *FILE_OPTIONS,
    *RUN_OPTIONS,
    GROUPS,
    click.option(
        "--layout", type=OneOf(LAYOUTS), default="ghw", show_default=True, help="Of plain codes: groups, rows, columns."
    ),
    click.option("--size", type=SizeType(), help="Of the images of plain codes. [default: all that the codes cover]"),
    click.option("--model-from", type=click.Path(path_type=Path), help="For plain codes: a token file whose size they take."),
)
def decode(
    bundle: Path,
    tokens: tuple[Path, ...],
    output: Path,
    recursive: bool,
    skip_existing: bool,
    force: bool,
    groups: int | None,
    layout: Layout,
    size: tuple[int, int] | None,
    model_from: Path | None,
    as_json: bool,
    json_lines: bool,
    **options: Any,
) -> None:
    """Turn TOKENS (token files, folders, - for standard input) into images, <name>.png.

    Plain codes, .npy or .npz with whole numbers [G, h, w], are taken too, as codes of BUNDLE's model.

    \b
    mgvq-export decode bundle codes.npy -o images --layout hwg --size 1000x750
    mgvq-export decode bundle tokens --recursive -o images
    mgvq-export decode bundle photo.safetensors -o images --groups 4
    """
    from mgvq_export.runtime.tokenizer import Tokenizer

    jobs = find_jobs(tokens, output, TOKEN_SUFFIXES, ".png", recursive=recursive)
    lines = Lines(as_json, json_lines=json_lines, output=output)
    with Tokenizer.open(bundle, **tokenizer_options(options)) as tokenizer:
        tokenizer.check_groups(groups)
        if model_from is not None:
            size = _size_of(model_from, tokenizer, size)
        read = partial(_read, tokenizer.bundle, layout, size)
        run_files(jobs, _work(tokenizer, groups, read), lines, force=force, skip_existing=skip_existing)


def _work(tokenizer: Tokenizer, groups: int | None, read: Callable[[Path], Tokens]) -> Work[Tokens, Planned]:
    from mgvq_export.runtime.image_files import write_image

    def compute(tokens: Sequence[Tokens], progress: Callable[[int, int], None]) -> list[Planned]:
        plans = [tokenizer.decode_plan(*one.image_size) for one in tokens]
        if len(tokens) == 1:
            return [(plans[0], tokenizer.decode(tokens[0], groups=groups, plan=plans[0], progress=progress))]
        return list(zip(plans, tokenizer.decode_batch(tokens, groups=groups, progress=progress), strict=True))

    def describe(_: Tokens, result: Planned) -> tuple[str, JsonObject]:
        plan, image = result
        height, width = image.shape[:2]
        return f"{width}x{height}, {plan}", {"image_size": (height, width), "plan": plan_facts(plan)}

    return Work(
        read=read,
        compute=compute,
        write=lambda target, result: write_to(target, ".png", lambda file: write_image(file, result[1])),
        describe=describe,
    )


def _size_of(model_from: Path, tokenizer: Tokenizer, size: tuple[int, int] | None) -> tuple[int, int]:
    """The size of the tokens in ``model_from``, which must be of the same model."""
    from mgvq_export.core.tokens import Tokens

    tokens = Tokens.load(model_from)
    tokens.check_model(tokenizer.spec, tokenizer.bundle.codebook_sha256)
    if size is not None:
        raise InputError("both --size and --model-from are given; leave one of them out")
    return tokens.image_size


def _read(bundle: Bundle, layout: Layout, size: tuple[int, int] | None, path: Path) -> Tokens:
    """The tokens in a token file, on standard input, or of plain codes."""
    from mgvq_export.core.codes import read_codes
    from mgvq_export.core.tokens import Tokens

    data = standard_bytes(path)
    if data is not None:
        with tempfile.TemporaryDirectory(prefix="mgvq-") as folder:
            file = Path(folder) / "standard-input.safetensors"
            file.write_bytes(data)
            return Tokens.load(file)
    plain = path.suffix.lower() == ".npy" or (path.suffix.lower() == ".npz" and not _describes_itself(path))
    if not plain:
        return Tokens.load(path)
    try:
        return Tokens.from_codes(bundle, read_codes(path), size, layout=layout)
    except TokensError as error:
        raise TokensError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _describes_itself(path: Path) -> bool:
    """Whether an .npz file is one that Tokens.save wrote, with its model; one that is no archive is for Tokens.load to refuse."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "metadata.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return True
