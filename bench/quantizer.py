"""The quantizer's lowerings on the CPU beside other ways to find the nearest code, in one run.

    python -m mgvq_export.bench.quantizer [--size NAME]... [--way NAME]... [--repeat 5] [--all] [--json FILE]

Every way runs in a process of its own on the same seeded latents, so that its peak memory is its own. The ways are then timed in
turns (one call of each, over and over); a way whose package is missing is listed as missing. Peers search the same unit rows:
for unit vectors the nearest row is the one with the largest inner product.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: name -> (G, K, d, h, w): the latents of one 2560x1440 image.
SIZES = {"f16 G8": (8, 2048, 4, 90, 160), "f8 G4": (4, 8192, 8, 180, 320)}
Way = Callable[[np.ndarray, np.ndarray], Callable[[], np.ndarray]]  # (latent, codebook) -> call that gives the codes


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
    """Codes from ``search(group, unit vectors [h*w, d]) -> [h*w]``; the peers' common frame."""
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


WAYS: dict[str, Way] = {
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


def _peak_mib(*, forget: bool = False) -> float:
    """The process's peak resident memory; with ``forget``, of its present one, from which the peak then counts anew (Linux)."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its peak begins with the parent's, which a child inherits, and cannot be reset.
        if forget:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _serve(way: str, size: tuple[int, int, int, int, int], pipe: Any) -> None:
    """A child's life: build, run once on a corner of the latents, report; then one timed call per request, until told to stop."""
    latent, codebook = make_inputs(size)
    try:
        WAYS[way](
            np.ascontiguousarray(latent[:, :, :1, :8]), codebook
        )()  # imports, compilation, thread pools: not the run's memory
        call = WAYS[way](latent, codebook)
    except ImportError as error:
        pipe.send({"missing": error.name or str(error)})
        return
    before = _peak_mib(forget=True)
    codes = call()
    pipe.send({"added_mib": _peak_mib() - before, "codes": codes})
    while pipe.recv() == "run":
        start = time.perf_counter()
        call()
        pipe.send(time.perf_counter() - start)


def measure(size_name: str, ways: list[str], repeat: int) -> list[dict[str, Any]]:
    """One row per way: ``way``, and ``missing``, or ``ms`` (median), ``ms_min``, ``ms_max``, ``added_mib`` and ``differ``.

    ``added_mib`` is how far the first full call raises the process's peak memory; ``differ`` is how many codes are not the
    fused kernel's, with ``margin`` the largest of :func:`~mgvq_export.ops.contract.near_tie_margins` (0 when none differ).
    """
    from mgvq_export.ops.contract import near_tie_margins
    from mgvq_export.ops.cpu_kernel import grouped_argmin

    latent, codebook = make_inputs(SIZES[size_name])
    wanted = grouped_argmin(latent, codebook)
    context = multiprocessing.get_context("spawn")
    rows, running = [], {}
    for way in ways:
        pipe, other = context.Pipe()
        child = context.Process(target=_serve, args=(way, SIZES[size_name], other), daemon=True)
        child.start()
        other.close()
        first = pipe.recv()
        row: dict[str, Any] = {"way": way}
        rows.append(row)
        if "missing" in first:
            row["missing"] = first["missing"]
            continue
        margins = near_tie_margins(latent, codebook, wanted, first["codes"])
        row |= {"added_mib": first["added_mib"], "differ": len(margins), "margin": float(margins.max(initial=0)), "times": []}
        running[way] = (row, pipe, child)
    for _ in range(repeat):
        for row, pipe, _child in running.values():
            pipe.send("run")
            row["times"].append(pipe.recv())
    for row, pipe, child in running.values():
        pipe.send("stop")
        child.join()
        times = [1000 * seconds for seconds in row.pop("times")]
        row |= {"ms": statistics.median(times), "ms_min": min(times), "ms_max": max(times)}
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mgvq_export.bench.quantizer", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeat", type=int, default=5, help="timed calls of each way (default 5)")
    parser.add_argument("--size", choices=SIZES, action="append", help="one of the sizes (default: all)")
    parser.add_argument("--way", choices=WAYS, action="append", help="one of the ways (default: all but the full sort)")
    parser.add_argument("--all", action="store_true", help="the full sort too, which takes many seconds a call")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    ways = options.way or [way for way in WAYS if options.all or way not in SLOW]
    results = {}
    for name in options.size or SIZES:
        groups, codes, dim, height, width = SIZES[name]
        rows = results[name] = measure(name, ways, max(1, options.repeat))
        print(f"\n{name}: {height * width:,} positions, {groups} groups of {codes} codes, d = {dim}")
        print(f"{'':32}{'median ms':>10}{'min':>9}{'max':>9}{'x first':>9}{'added MiB':>11}  codes that differ (largest margin)")
        for row in rows:
            if "missing" in row:
                print(f"{row['way']:32}  not measured: package {row['missing']} is not installed")
                continue
            ratio = row["ms"] / rows[0]["ms"] if "ms" in rows[0] else float("nan")
            times = f"{row['ms']:>10.1f}{row['ms_min']:>9.1f}{row['ms_max']:>9.1f}{ratio:>9.1f}"
            print(f"{row['way']:32}{times}{row['added_mib']:>11.1f}  {row['differ']} ({row['margin']:.1e})", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
