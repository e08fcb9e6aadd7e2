"""``inspect``: what a file or folder is and holds."""

from __future__ import annotations

import click

from mgvq_export.commands.options import ALLOW_HOST_CODE
from mgvq_export.commands.output import echo_json, echo_table, echo_tables
from mgvq_export.commands.verb import verb
from mgvq_export.core.tables import Table


@verb(
    click.argument("target"),
    click.option("--trust", is_flag=True, help="Load an engine that lies in no bundle."),
    ALLOW_HOST_CODE,
)
def inspect(target: str, trust: bool, allow_host_code: bool, as_json: bool) -> None:
    """Describe TARGET, any file that mgvq-export reads or writes: what it is, what it holds, whether it runs here.

    \b
    Folder or checkpoint:
      bundle                 precisions, graphs, engines; all files are checked against their hashes
      checkpoint             a file, a name that "mgvq-export models" lists, or hf://owner/repo/file
    Files by suffix:
      .safetensors .npz      token file
      .onnx                  graph: inputs, outputs, operators
      .engine .plan .trt     TensorRT engine: its entry in the bundle, and its layers where it can be loaded
      .json                  precision plan, bench results, calibration ranges, bundle manifest,
                             evaluation results, verification report or calibration report
    """
    from mgvq_export.inspection.describe import describe

    facts = describe(target, trust=trust, allow_host_code=allow_host_code)
    if as_json:
        return echo_json({name.replace(" ", "_"): value for name, value in facts.values.items()})
    echo_table(Table(("", ""), [[name, str(value)] for name, value in facts.summary()]))
    echo_tables(facts.tables)
