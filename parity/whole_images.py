"""Compares a backend that runs whole images only (TensorRT engines) with the reference precision on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mgvq_export.core.budgets import Budgets
from mgvq_export.core.errors import MgvqError
from mgvq_export.core.precision_plan import FLOATS
from mgvq_export.core.tokens import Tokens
from mgvq_export.parity.compare import CodeDifferences, Worst
from mgvq_export.parity.context import VerificationContext
from mgvq_export.parity.metrics import psnr
from mgvq_export.parity.results import REPORTED, SKIPPED, CheckResult
from mgvq_export.parity.tolerances import budget, tolerance
from mgvq_export.runtime.images import to_uint8


def check_whole_images(context: VerificationContext) -> Iterable[CheckResult]:
    """Are its codes those of the reference, and does it decode the same codes to the same image? In every precision it runs.

    Images without an engine of their size are left out; if none is left, the results have the reason.
    """
    checks: list[CheckResult] = []
    reference, spec = context.reference, context.bundle.spec
    for precision in context.bundle.precisions:
        plan = context.bundle.plan(precision)
        budgets = Budgets() if plan is None else plan.budgets
        # Compared with another precision and another library, fp32 has fp16's limits.
        encoder, decoder = ("fp16" if kind in FLOATS else kind for kind in context.kinds(precision))
        prefix = f"backend/{precision}"
        question = f"Are enough codes of {context.whole} in {precision} those of {reference} on the CPU?"
        codes = CodeDifferences(f"{prefix}/codes", question, tolerance("codes", encoder))
        question = f"Does {context.whole} in {precision} decode the same codes to the same image?"
        quality = Worst(f"{prefix}/image", question, budget(tolerance("psnr", decoder), budgets.min_psnr))
        for name in context.images:
            wanted = context.codes(name, reference)
            try:
                found = context.whole_codes(name, precision)
                tokens = Tokens.from_spec(spec, wanted[0], context.images[name].shape[:2], context.bundle.codebook_sha256)
                image = context.whole_tokenizer(precision).decode(tokens)
            except MgvqError as error:
                codes.when_empty = quality.when_empty = str(error)
                continue
            codes.add(name, context.latent(name, reference), context.codebook, found, wanted)
            quality.add(name, psnr(image, to_uint8(context.pixels(name, reference))))
        agreement = codes.agreement_result(budget(tolerance("agreement", "fp16"), budgets.min_code_agreement))
        if encoder not in FLOATS and budgets.min_code_agreement is None and agreement.status != SKIPPED:
            agreement = replace(
                agreement, status=REPORTED, tolerance=None
            )  # without a budget there is no limit for the codes that 8 bits may change
        checks += [agreement, quality.result()]
    return checks
