"""Precisions that a backend makes of the bundle's graphs at run time (bfloat16), against the graphs as they are."""

from __future__ import annotations

from mgvq_export.core.errors import BackendError
from mgvq_export.parity import graphs
from mgvq_export.parity.compare import Worst
from mgvq_export.parity.context import VerificationContext
from mgvq_export.parity.metrics import psnr
from mgvq_export.parity.results import CheckResult
from mgvq_export.parity.tolerances import tolerance
from mgvq_export.runtime.backend import BACKENDS

_JUDGED = "bf16"  # it leaves the encoder, and so the codes, alone; others change codes, and are for those who ask for them


def check_made_precision(context: VerificationContext) -> list[CheckResult]:
    """Does the decoder in bfloat16 decode the same codes to the same pixels? No rows where the backend does not make it."""
    source = BACKENDS[context.backend].precisions.get(_JUDGED)
    if source is None or source not in context.bundle.precisions:
        return []
    row = Worst(
        f"precision/{_JUDGED}/pixels",
        f"Does {_JUDGED} decode the same codes to the same pixels?",
        tolerance("psnr", _JUDGED),
    )
    try:
        tokenizer = context.tokenizer(_JUDGED)
    except BackendError as error:
        return [CheckResult.skipped(row.name, row.question, str(error))]
    for image in context.images:
        row.add(image, psnr(graphs.pixels_of(tokenizer, context.codes(image, source)), context.pixels(image, source), peak=2.0))
    return [row.result()]
