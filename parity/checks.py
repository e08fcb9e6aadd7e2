"""The checks of a verification. Each takes a :class:`VerificationContext` and returns results; each figure is the worst over all images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from mgvq_export.core.budgets import Budgets
from mgvq_export.core.precision_plan import FLOATS
from mgvq_export.core.spec import Part, group_counts
from mgvq_export.ops.contract import grouped_argmin
from mgvq_export.parity import graphs
from mgvq_export.parity.compare import CodeDifferences, Worst
from mgvq_export.parity.context import SAMPLE_SIDE, Images, VerificationContext
from mgvq_export.parity.made_precisions import check_made_precision
from mgvq_export.parity.metrics import agreement, max_abs, psnr, relative_l2
from mgvq_export.parity.network import network_codebook, run_codes, run_decode, run_latent
from mgvq_export.parity.results import REPORTED, CheckResult
from mgvq_export.parity.tolerances import budget, tolerance
from mgvq_export.parity.whole_images import check_whole_images
from mgvq_export.runtime.backend import Session
from mgvq_export.runtime.images import to_float, to_uint8
from mgvq_export.runtime.ort.sessions import OrtSession

_ORACLE_SIDE = (
    64  # the oracle takes 4 * K bytes per latent position: larger latents are cropped to this side, around their centre
)

CheckResults = Iterable[CheckResult]


def check_network(context: VerificationContext) -> CheckResults:
    """Do the graphs give what the PyTorch network gives? Latent, codes, and the decoding of the network's codes."""
    precision = context.reference
    encoder, decoder = context.kinds(precision)
    latent = Worst("network/latent", "Does the encoder give the network's latent?", tolerance("latent", encoder))
    codes = CodeDifferences("network/codes", "Does encoding give the network's codes?", tolerance("codes", encoder))
    pixels = Worst(
        "network/pixels", "Does the decoder give the network's pixels for the same codes?", tolerance("pixels", decoder)
    )
    book = Worst(
        "network/codebook", "Are the codebook rows the network's?", tolerance("codebook", context.bundle.base(precision))
    )
    why = context.no_network if context.network is None else context.no_float
    if context.network is None or why:
        return [CheckResult.skipped(row.name, row.question, why) for row in (book, latent, codes, pixels)]
    tokenizer = context.tokenizer(precision)
    rows = network_codebook(context.network)
    book.add("", max_abs(graphs.codebook_of(tokenizer), rows))
    for name, image in context.images.items():
        wanted = run_latent(context.network, to_float(image))
        wanted_codes = run_codes(context.network, wanted)
        latent.add(name, relative_l2(context.latent(name, precision), wanted))
        codes.add(name, wanted, rows, context.codes(name, precision), wanted_codes)
        found = graphs.pixels_of(tokenizer, wanted_codes)
        pixels.add(name, max_abs(found, run_decode(context.network, wanted_codes)))
    return [book.result(), latent.result(), codes.result(), pixels.result()]


def check_precision(context: VerificationContext) -> CheckResults:
    """Does every further precision agree with fp32?"""
    reference = context.reference
    checks: list[CheckResult] = []
    for precision in context.bundle.precisions:
        if precision != reference:
            checks += _against_reference(context, precision)
    checks += check_made_precision(context)
    if not checks:
        why = f"the bundle has {reference} only; export it with --precision fp32 --precision fp16"
        checks.append(CheckResult.skipped("precision", "Does every further precision agree with fp32?", why))
    return checks


def _against_reference(context: VerificationContext, name: str) -> CheckResults:
    """Rows of one precision. A budget in its plan is the limit; codes of an 8-bit encoder have no other limit."""
    reference, tokenizer, plan = context.reference, context.tokenizer(name), context.bundle.plan(name)
    encoder, decoder = context.kinds(name)
    budgets = Budgets() if plan is None else plan.budgets
    latent = Worst(f"precision/{name}/latent", f"Is the {name} latent that of {reference}?", tolerance("latent", "fp16"))
    codes = CodeDifferences(
        f"precision/{name}/codes", f"Are enough {name} codes those of {reference}?", tolerance("codes", _half(encoder))
    )
    limit = budget(tolerance("psnr", _half(decoder)), budgets.min_psnr)
    quality = Worst(f"precision/{name}/pixels", f"Does {name} decode the same codes to the same pixels?", limit)
    limit = budget(tolerance("drop"), budgets.max_psnr_drop)
    drop = Worst(f"precision/{name}/drop", f"Do images keep their quality in {name}?", limit)
    judge_drop = budgets.max_psnr_drop is not None or not {encoder, decoder} <= {*FLOATS}
    for image in context.images:
        wanted = context.latent(image, reference)
        wanted_codes = context.codes(image, reference)
        latent.add(image, relative_l2(context.latent(image, name), wanted))
        codes.add(image, wanted, context.codebook, context.codes(image, name), wanted_codes)
        pixels = graphs.pixels_of(tokenizer, wanted_codes)
        quality.add(image, psnr(pixels, context.pixels(image, reference), peak=2.0))
        if judge_drop:
            drop.add(image, _quality(context, image, reference) - _quality(context, image, name))
    checks = [codes.agreement_result(budget(tolerance("agreement", "fp16"), budgets.min_code_agreement)), quality.result()]
    if encoder in FLOATS:
        checks.insert(0, latent.result())
    elif budgets.min_code_agreement is None:
        checks[0] = replace(checks[0], status=REPORTED, tolerance=None)
    return [*checks, drop.result()] if judge_drop else checks


def _half(kind: str) -> str:
    """The tolerance for a comparison with fp32: for a plan whose nodes are all fp32, that of fp16."""
    return "fp16" if kind == "fp32" else kind


def _quality(context: VerificationContext, image: str, precision: str) -> float:
    """PSNR in dB of an image encoded and decoded against itself."""
    return psnr(np.clip(context.pixels(image, precision), -1, 1), to_float(context.images[image]), peak=2.0)


def check_backend(context: VerificationContext) -> CheckResults:
    """Does the backend agree with ONNX Runtime on the CPU?"""
    question = "Does the backend agree with ONNX Runtime on the CPU?"
    if context.whole:
        return check_whole_images(context)
    if context.backend == "ort-cpu":
        return [CheckResult.skipped("backend", question, "the backend is ort-cpu; choose another with --backend")]
    checks: list[CheckResult] = []
    for precision in context.bundle.precisions:
        here, cpu = context.tokenizer(precision), context.tokenizer(precision, "ort-cpu")
        encoder, decoder = context.kinds(precision)
        latent = Worst(f"backend/{precision}/latent", question, tolerance("latent", encoder))
        codes = CodeDifferences(f"backend/{precision}/codes", question, tolerance("codes", encoder))
        pixels = Worst(f"backend/{precision}/pixels", question, tolerance("pixels", decoder))
        for name in context.images:
            wanted = context.latent(name, precision, "ort-cpu")
            wanted_codes = context.codes(name, precision, "ort-cpu")
            latent.add(name, relative_l2(context.latent(name, precision), wanted))
            codes.add(name, wanted, context.codebook, context.codes(name, precision), wanted_codes)
            pixels.add(name, max_abs(graphs.pixels_of(here, wanted_codes), graphs.pixels_of(cpu, wanted_codes)))
        checks += [latent.result(), codes.result(), pixels.result()]
    return checks


def check_quantizer(context: VerificationContext) -> CheckResults:
    """On identical latents: does every lowering of the operator give the oracle's codes, and the quantizer the rows of those codes?"""
    checks: list[CheckResult] = []
    if "fp32" not in context.bundle.precisions and context.network is None:
        why = f"the float32 codebook is needed: {context.no_network}"
        return [CheckResult.skipped("quantizer", "Does the quantizer give the oracle's codes?", why)]
    limit = tolerance("codes", "operator")
    for precision in context.bundle.precisions:
        tokenizer = context.tokenizer(precision)
        dtype = tokenizer.graphs[Part.QUANTIZER].inputs["latent"]
        latents = {name: _centre(context.latent(name, precision)) for name in context.images}
        probes = graphs.probe_latents(context.codebook, dtype)
        wanted = {name: grouped_argmin(latent, context.codebook) for name, latent in latents.items()}
        wanted_rules = [grouped_argmin(probe, context.codebook) for probe in probes]
        for lowering, session in _lowerings(context, precision).items():
            prefix = f"quantizer/{precision}/{lowering}"
            codes = CodeDifferences(
                f"{prefix}/codes", f"Does the {lowering} lowering give the oracle's codes on the same latents?", limit
            )
            rules = CodeDifferences(
                f"{prefix}/rules",
                f"Does the {lowering} lowering follow the rules for zeros, ties and NaN, and find every row?",
                limit,
            )
            for name, latent in latents.items():
                codes.add(name, latent, context.codebook, graphs.run(session, "codes", latent=latent), wanted[name])
            for probe, rule in zip(probes, wanted_rules, strict=True):
                rules.add("probe", probe, context.codebook, graphs.run(session, "codes", latent=probe), rule)
            checks += [codes.result(), rules.result()]
        rows = Worst(
            f"quantizer/{precision}/rows", "Does the quantizer look up the rows the dequantizer does?", tolerance("exact")
        )
        for name, latent in latents.items():
            found_codes, found = tokenizer.graphs[Part.QUANTIZER].run({"latent": latent}, ["codes", "quantized"])
            rows.add(name, max_abs(found, graphs.lookup(tokenizer, found_codes)))
        checks.append(rows.result())
    return checks


def _lowerings(context: VerificationContext, precision: str) -> dict[str, Session]:
    """Every way the operator can run here, by name."""
    path = context.bundle.graph_path(precision, Part.QUANTIZER)
    found: dict[str, Session] = {"function": OrtSession(path, "ort-cpu", fused_kernels=False)}
    name = "fused" if context.backend == "ort-cpu" else context.backend
    return {name: context.tokenizer(precision).graphs[Part.QUANTIZER], **found}


def _centre(latent: np.ndarray) -> np.ndarray:
    top, left = (max(0, (side - _ORACLE_SIDE) // 2) for side in latent.shape[2:])
    return np.ascontiguousarray(latent[:, :, top : top + _ORACLE_SIDE, left : left + _ORACLE_SIDE])


def check_decoder(context: VerificationContext) -> CheckResults:
    """On identical codes: are groups that are left out set to zero, and do 1, 2, 4, ... groups give the network's pixels?"""
    precision, spec = context.reference, context.bundle.spec
    tokenizer = context.tokenizer(precision)
    name, image = context.sample
    codes = graphs.codes_of(tokenizer, graphs.latent_of(tokenizer, image))
    counts = group_counts(spec.groups)
    rows = Worst("decoder/groups", "Does the dequantizer set the groups left out to zero, and only those?", tolerance("exact"))
    whole = graphs.lookup(tokenizer, codes)
    for count in counts:
        wanted = np.where(np.arange(spec.latent_channels)[:, None, None] < count * spec.group_dim, whole, 0)
        rows.add(f"{name}, {count} groups", max_abs(graphs.lookup(tokenizer, codes, count), wanted))
    question = "Does decoding fewer groups give the network's pixels for the same codes?"
    pixels = Worst("decoder/pixels", question, tolerance("pixels", context.kinds(precision)[1]))
    why = context.no_network if context.network is None else context.no_float
    if context.network is None or why:
        return [rows.result(), CheckResult.skipped(pixels.name, pixels.question, why)]
    for count in counts[:-1] or counts:
        wanted = run_decode(context.network, codes, count)
        pixels.add(f"{name}, {count} groups", max_abs(graphs.pixels_of(tokenizer, codes, count), wanted))
    return [rows.result(), pixels.result()]


def check_graphs(context: VerificationContext) -> CheckResults:
    """Do the graphs that split the same layers differently (whole; trunk and head; fine and coarse) agree?"""
    checks = []
    image_name, image = context.sample
    for precision in context.bundle.precisions:
        tokenizer = context.tokenizer(precision)
        kinds = dict(zip(("encoder", "decoder"), context.kinds(precision), strict=True))
        codes = graphs.codes_of(tokenizer, graphs.latent_of(tokenizer, image))
        quantized = graphs.lookup(tokenizer, codes)
        ways: dict[str, tuple[np.ndarray, tuple[Part, ...], tuple[Part, ...]]] = {
            "encoder": (to_float(image), (Part.ENCODER_TRUNK, Part.ENCODER_HEAD), (Part.ENCODER,)),
            "decoder": (quantized, (Part.DECODER_HEAD, Part.DECODER_TRUNK), (Part.DECODER,)),
        }
        if context.bundle.has_part(Part.ENCODER_TRUNK_FINE):
            features = graphs.chain(tokenizer, quantized, Part.DECODER_HEAD)
            halves = (Part.ENCODER_TRUNK_FINE, Part.ENCODER_TRUNK_COARSE)
            ways["encoder_trunk"] = (to_float(image), (Part.ENCODER_TRUNK,), halves)
            halves = (Part.DECODER_TRUNK_COARSE, Part.DECODER_TRUNK_FINE)
            ways["decoder_trunk"] = (features, (Part.DECODER_TRUNK,), halves)
        for name, (values, wanted, found) in ways.items():
            question = f"Is what {' + '.join(map(str, found))} gives that of {' + '.join(map(str, wanted))}?"
            row = Worst(f"graphs/{precision}/{name}", question, tolerance("latent", kinds[name.split("_")[0]]))
            row.add(image_name, relative_l2(graphs.chain(tokenizer, values, *found), graphs.chain(tokenizer, values, *wanted)))
            checks.append(row.result())
    return checks


def check_batch(context: VerificationContext) -> CheckResults:
    """Does an image give the same result alone, in a batch, and at another position of the batch?"""
    checks = []
    images = _same_size(context.images)
    for precision in context.bundle.precisions:
        tokenizer = context.tokenizer(precision)
        encoder, decoder = context.kinds(precision)
        question = "Does an image give the same alone, in a batch, and in another place of it?"
        latent = Worst(f"batch/{precision}/latent", question, tolerance("latent", encoder))
        codes = CodeDifferences(f"batch/{precision}/codes", question, tolerance("codes", encoder))
        pixels = Worst(f"batch/{precision}/pixels", question, tolerance("pixels", decoder))
        alone = [graphs.latent_of(tokenizer, image) for image in images.values()]
        alone_codes = [graphs.codes_of(tokenizer, one) for one in alone]
        alone_pixels = [graphs.pixels_of(tokenizer, one) for one in alone_codes]
        floats = np.concatenate([to_float(image) for image in images.values()])
        for order in (range(len(images)), range(len(images) - 1, -1, -1)):
            together = graphs.chain(tokenizer, floats[list(order)], Part.ENCODER_TRUNK, Part.ENCODER_HEAD)
            together_codes = graphs.codes_of(tokenizer, together)
            together_pixels = graphs.pixels_of(tokenizer, np.concatenate([alone_codes[index] for index in order]))
            for place, index in enumerate(order):
                name, here = list(images)[index], slice(place, place + 1)
                latent.add(name, relative_l2(together[here], alone[index]))
                codes.add(name, alone[index], context.codebook, together_codes[here], alone_codes[index])
                pixels.add(name, max_abs(together_pixels[here], alone_pixels[index]))
        checks += [latent.result(), codes.result(), pixels.result()]
    return checks


def _same_size(images: Images) -> Images:
    """All images cropped to 256 pixels a side, or to the smallest among them; a single image gets its mirror image beside it."""
    height, width = (min(SAMPLE_SIDE, *(image.shape[axis] for image in images.values())) for axis in (0, 1))
    cut = {name: image[:height, :width] for name, image in images.items()}
    if len(cut) == 1:
        ((name, image),) = cut.items()
        cut[f"{name}, mirrored"] = np.ascontiguousarray(image[:, ::-1])
    return cut


def check_tiling(context: VerificationContext) -> CheckResults:
    """Does the exact tiling give what one window gives?"""
    checks = []
    for precision in context.bundle.precisions:
        tokenizer = context.tokenizer(precision)
        encoder, decoder = context.kinds(precision)
        stride = context.bundle.spec.trunk_stride
        latent = Worst(f"tiling/{precision}/latent", "Is the tiled latent the untiled one?", tolerance("latent", encoder))
        codes = CodeDifferences(f"tiling/{precision}/codes", "Are the tiled codes the untiled ones?", tolerance("codes", encoder))
        pixels = Worst(f"tiling/{precision}/pixels", "Are the tiled pixels the untiled ones?", tolerance("pixels", decoder))
        steps = Worst(f"tiling/{precision}/image", "Is the tiled 8-bit image the untiled one?", tolerance("steps", decoder))
        for row in (latent, codes, pixels, steps):
            row.when_empty = "no image is large enough to be cut into windows"
        for name in context.some_images(precision):
            image = context.images[name]
            height, width = image.shape[:2]
            plan = graphs.window_plan((height, width), context.bundle.reach(Part.ENCODER_TRUNK))
            wanted, wanted_codes = context.latent(name, precision), context.codes(name, precision)
            if len(plan.windows) > 1:
                found = graphs.tiled_latent(tokenizer, image, plan)
                latent.add(f"{name}, {plan}", relative_l2(found, wanted))
                codes.add(name, wanted, context.codebook, graphs.codes_of(tokenizer, found), wanted_codes)
            size = (height // stride, width // stride)
            plan = graphs.window_plan(size, context.bundle.reach(Part.DECODER_TRUNK), scale=stride)
            if len(plan.windows) > 1:
                whole = context.pixels(name, precision)
                pixels.add(f"{name}, {plan}", max_abs(graphs.tiled_pixels(tokenizer, wanted_codes, plan), whole))
                if np.isfinite(whole).all():
                    found_image = graphs.tiled_image(tokenizer, wanted_codes, plan)
                    steps.add(name, max_abs(found_image, to_uint8(whole)))
                else:  # values that are not finite have no 8-bit image
                    steps.add(name, math.nan)
        checks += [latent.result(), codes.result(), pixels.result(), steps.result()]
    return checks


def check_round_trip(context: VerificationContext) -> CheckResults:
    """How many codes stay the same when a decoded image is encoded again? A figure of the model, without a limit."""
    question = "How many codes stay when a decoded image is encoded again?"
    precision = context.reference
    tokenizer = context.tokenizer(precision)
    shares: list[float] = []
    for name in context.images:
        pixels = context.pixels(name, precision)
        if not np.isfinite(pixels).all():
            return [
                CheckResult("round-trip", question, REPORTED, math.nan, None, f"{name} is decoded to values that are not finite")
            ]
        again = graphs.latent_of(tokenizer, to_uint8(pixels))
        shares.append(agreement(graphs.codes_of(tokenizer, again), context.codes(name, precision)))
    each = ", ".join(f"{name} {share:.1%}" for name, share in zip(context.images, shares, strict=True))
    mean = math.fsum(shares) / len(shares)
    return [CheckResult("round-trip", question, REPORTED, mean, None, f"share of equal codes: {each}")]


#: The checks by the name that ``only`` takes, in the order they run.
CHECKS: dict[str, Callable[[VerificationContext], CheckResults]] = {
    "network": check_network,
    "precision": check_precision,
    "backend": check_backend,
    "quantizer": check_quantizer,
    "decoder": check_decoder,
    "graphs": check_graphs,
    "batch": check_batch,
    "tiling": check_tiling,
    "round-trip": check_round_trip,
}
