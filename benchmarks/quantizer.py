"""The quantizer's lowerings on the CPU beside other methods that find the nearest code, in one run.

    python -m mgvq_export.benchmarks.quantizer [--size NAME]... [--baseline NAME]... [--repeat 5] [--all] [-o FILE]

Every baseline runs in a process of its own on the same seeded latents, so that its peak memory is measured alone. The baselines are then timed in
turns (one call of each, over and over); a baseline whose package is missing is listed as missing. Peers search the same unit rows:
for unit vectors the nearest row is the one with the largest inner product. ``mgvq-export bench compare`` compares two such files.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mgvq_export.bench.processes import Baseline, Outcome, measure
from mgvq_export.bench.record import Entry, EntryFacts, Results
from mgvq_export.bench.timing import Laps, paired_ratio

#: name -> (G, K, d, h, w): the latents of one 2560x1440 image.
SIZES = {"f16 G8": (8, 2048, 4, 90, 160), "f8 G4": (4, 8192, 8, 180, 320)}
#: (latent, codebook) -> a function that computes the codes.
Prepare = Callable[[np.ndarray, np.ndarray], Callable[[], np.ndarray]]


def make_inputs(size: tuple[int, int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Seeded latent float32 [1, G*d, h, w] and unit codebook float32 [G, K, d]."""
    groups, codes, dim, height, width = size
    rng = np.random.default_rng(0)
    codebook = rng.standard_normal((groups, codes, dim), dtype=np.float32)
    codebook /= np.linalg.norm(codebook, axis=-1, keepdims=True)
    return rng.standard_normal((1, groups * dim, height, width), dtype=np.float32), codebook


def _ort(latent: np.ndarray, codebook: np.ndarray, fused: bool) -> Callable[[], np.ndarray]:
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    from mgvq_export.ops import contract, register_ort_kernels
    from mgvq_export.ops.function import OPSET, grouped_argmin_function

    graph = helper.make_graph(
        [helper.make_node(contract.OP_NAME, ["latent", "codebook"], ["codes"], domain=contract.DOMAIN)],
        "quantizer",
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["B", latent.shape[1], "h", "w"])],
        [helper.make_tensor_value_info("codes", TensorProto.INT32, ["B", codebook.shape[0], "h", "w"])],
        [onnx.numpy_helper.from_array(codebook, "codebook")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(contract.DOMAIN, contract.VERSION)]
    model = helper.make_model(graph, functions=[grouped_argmin_function(*codebook.shape)], opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    if fused:
        register_ort_kernels(options)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"latent": latent})[0]


def _fused_direct(latent: np.ndarray, codebook: np.ndarray) -> Callable[[], np.ndarray]:
    from mgvq_export.ops.cpu_kernel import grouped_argmin

    return lambda: grouped_argmin(latent, codebook)


def _by_group(latent: np.ndarray, codebook: np.ndarray, search: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Codes from ``search(group, unit vectors [h*w, d]) -> [h*w]``; shared by the peers."""
    groups, _, dim = codebook.shape
    vectors = latent.reshape(groups, dim, -1).transpose(0, 2, 1)
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    found = [search(group, np.ascontiguousarray(vectors[group])) for group in range(groups)]
    return np.stack(found).astype(np.int32).reshape(1, groups, *latent.shape[2:])


def _torch(latent: np.ndarray, codebook: np.ndarray, kind: str) -> Callable[[], np.ndarray]:
    import torch

    rows = [torch.from_numpy(group) for group in codebook]

    def search(group: int, vectors: np.ndarray) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for part in torch.from_numpy(vectors).split(2048):  # all positions at once would take gigabytes
                if kind == "matmul":
                    parts.append((part @ rows[group].T).argmax(dim=1))
                elif kind == "cdist":
                    parts.append(torch.cdist(part, rows[group]).argmin(dim=1))
                else:  # the released network sorts all distances and takes the first
                    distance = part.square().sum(1, keepdim=True) + rows[group].square().sum(1) - 2 * part @ rows[group].T
                    parts.append(torch.sort(distance, dim=1).indices[:, 0])
        return torch.cat(parts).numpy()

    return lambda: _by_group(latent, codebook, search)


def _tree(latent: np.ndarray, codebook: np.ndarray) -> Callable[[], np.ndarray]:
    from scipy.spatial import cKDTree

    trees = [cKDTree(rows) for rows in codebook]  # built once, outside the time: the codebook does not change
    return lambda: _by_group(latent, codebook, lambda group, vectors: trees[group].query(vectors, workers=-1)[1])


def _faiss(latent: np.ndarray, codebook: np.ndarray) -> Callable[[], np.ndarray]:
    import faiss

    indexes = []
    for rows in codebook:
        indexes.append(faiss.IndexFlatIP(rows.shape[1]))
        indexes[-1].add(rows)
    return lambda: _by_group(latent, codebook, lambda group, vectors: indexes[group].search(vectors, 1)[1][:, 0])


BASELINES: dict[str, Prepare] = {
    "fused kernel in ONNX Runtime": lambda latent, codebook: _ort(latent, codebook, True),
    "fused kernel called directly": _fused_direct,
    "function body in ONNX Runtime": lambda latent, codebook: _ort(latent, codebook, False),
    "torch matmul + argmax": lambda latent, codebook: _torch(latent, codebook, "matmul"),
    "torch.cdist + argmin": lambda latent, codebook: _torch(latent, codebook, "cdist"),
    "scipy cKDTree": _tree,
    "faiss IndexFlatIP": _faiss,
    "torch full sort": lambda latent, codebook: _torch(latent, codebook, "sort"),
}
SLOW = {"torch full sort"}  # only with --all


class SearchJob:
    """One search for the codes of all latents, by one of :data:`BASELINES`."""

    def __init__(self, baseline: str, size: tuple[int, int, int, int, int]):
        self._prepare, (self._latent, self._codebook) = BASELINES[baseline], make_inputs(size)
        self._codes = np.empty(0, np.int32)

    def warm_up(self) -> None:
        """Load, compile and start threads on a small input: no part of a pass."""
        # A corner of the latents: imports, compilation and thread pools are not counted in the memory of the run.
        self._prepare(np.ascontiguousarray(self._latent[:, :, :1, :8]), self._codebook)()
        self._search = self._prepare(self._latent, self._codebook)

    def run(self) -> dict[str, float]:
        """One pass: seconds by stage."""
        laps = Laps(time.perf_counter)
        self._codes = self._search()
        laps.lap("search")
        return laps.seconds

    def outcome(self) -> Outcome:
        """Facts about the last pass, as :class:`~mgvq_export.bench.processes.Measured` keeps them."""
        return {"codes": self._codes}


def measure_baselines(size_name: str, baselines: list[str], repeat: int) -> list[Entry]:
    """One entry per baseline, in the group ``size_name``.

    Its facts: ``differ``, how many codes are not the fused kernel's, with ``margin`` the largest of
    :func:`~mgvq_export.ops.contract.near_tie_margins` (0 when none differ).
    """
    from mgvq_export.ops.contract import near_tie_margins
    from mgvq_export.ops.cpu_kernel import grouped_argmin

    size = SIZES[size_name]
    found = measure([Baseline(name, SearchJob, (name, size), optional=True) for name in baselines], repeat)
    latent, codebook = make_inputs(size)
    wanted = grouped_argmin(latent, codebook)
    entries = []
    for baseline, measured in found.items():
        facts: EntryFacts = {}
        if measured.outcome:
            margins = near_tie_margins(latent, codebook, wanted, measured.outcome["codes"])
            facts = {"codes": wanted.size, "differ": len(margins), "margin": float(margins.max(initial=0))}
        entries.append(Entry.of(baseline, size_name, measured, facts))
    return entries


def print_entries(size_name: str, entries: list[Entry]) -> None:
    """The entries of one size as a table; ratios are to the first that was measured."""
    groups, codes, dim, height, width = SIZES[size_name]
    print(f"\n{size_name}: {height * width:,} positions, {groups} groups of {codes} codes, d = {dim}")
    print(f"{'':32}{'p50 ms':>9}{'min':>9}{'max':>9}  {'time / first':22}{'added MiB':>9}  codes that differ (largest margin)")
    first = next((entry for entry in entries if not entry.skipped), None)
    for entry in entries:
        if entry.skipped or first is None:
            print(f"{entry.name:32}  not measured: {entry.skipped}")
            continue
        times = [1000 * seconds for seconds in entry.seconds("search")]
        ratio = paired_ratio(entry.seconds("search"), first.seconds("search"))
        added = (entry.memory["peak_bytes"] - entry.memory["base_bytes"]) / 2**20
        figures = f"{statistics.median(times):>9.1f}{min(times):>9.1f}{max(times):>9.1f}  {ratio!s:22}{added:>9.1f}"
        print(f"{entry.name:32}{figures}  {entry.facts['differ']} ({entry.facts['margin']:.1e})", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(
        prog="python -m mgvq_export.benchmarks.quantizer", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--repeat", type=int, default=5, help="timed calls of each baseline (default 5)")
    parser.add_argument("--size", choices=SIZES, action="append", help="one of the sizes (default: all)")
    parser.add_argument(
        "--baseline", choices=BASELINES, action="append", help="one of the baselines (default: all but the full sort)"
    )
    parser.add_argument("--all", action="store_true", help="the full sort too, which takes many seconds a call")
    parser.add_argument("-o", "--output", type=Path, help="write all samples here, as JSON")
    options = parser.parse_args(arguments)
    baselines = options.baseline or [name for name in BASELINES if options.all or name not in SLOW]
    results = Results("quantizer", [], {"repeat": options.repeat})
    for name in options.size or SIZES:
        entries = measure_baselines(name, baselines, max(1, options.repeat))
        results.entries += entries
        print_entries(name, entries)
    if options.output:
        results.save(options.output)


if __name__ == "__main__":
    main()
