"""What the tests ask of TensorRT for RTX in a process of their own: each function prints one line of JSON."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.errors import MgvqError
from mgvq_export.core.manifest import Profile
from mgvq_export.core.spec import Part
from mgvq_export.export.engines import builder as engine_builder
from mgvq_export.export.engines.builder import EngineJob, build_plan
from mgvq_export.export.engines.graphs import engine_graph
from mgvq_export.export.engines.options import BuildOptions, profiles
from mgvq_export.ops.trt_machine import import_tensorrt, process_logger


def printed(function: Callable[..., Any]) -> Callable[[], None]:
    def run() -> None:
        try:
            found = function(*sys.argv[1:])
        except MgvqError as error:
            found = {"error": str(error)}
        print(json.dumps(found))

    return run


def job_of(bundle: Bundle, precision: str, part: Part, **options: Any) -> EngineJob:
    asked = BuildOptions(precision=precision, parts=(part,), target="rtx", **{"shapes": ((96, 64),)} | options)
    path = bundle.graph_path(precision, part)
    graph = engine_graph(path, "rtx")
    values = {value.name: value.dtype for value in (*graph.inputs, *graph.outputs)}
    shapes = profiles(bundle.spec, part, graph.inputs, asked)
    return EngineJob(f"{precision}/{part}", graph.model, path, values, graph.plugins, shapes, asked)


@printed
def parsed(folder: str, precision: str) -> dict[str, Any]:
    """Of every graph of a precision: inputs, outputs and layers as the real parser makes them."""
    trt = import_tensorrt("rtx")
    logger = process_logger(trt)
    found = {}
    bundle = Bundle.open(folder)
    for part in bundle.spec.parts:
        job = job_of(bundle, precision, part)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        assert parser.parse(job.model, path=str(job.graph_path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        found[str(part)] = {
            "inputs": {tensor.name: [str(tensor.dtype), list(tensor.shape)] for tensor in inputs},
            "outputs": {tensor.name: [str(tensor.dtype), list(tensor.shape)] for tensor in outputs},
            "layers": Counter(network.get_layer(index).type.name for index in range(network.num_layers)),
        }
    return found


@printed
def quantizer_memory(groups: str, codes: str, dim: str, kind: str) -> int | None:
    """Activation memory for maps of 16x16 to 4 of 90x160."""
    from mgvq_export.ops.contract import DOMAIN, OP_NAME
    from mgvq_export.ops.function import grouped_argmin_function

    g, k, d = int(groups), int(codes), int(dim)
    codebook = np.random.default_rng(0).standard_normal((g, k, d)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(OP_NAME, ["latent", "codebook"], ["codes"], domain=DOMAIN, name="argmin")],
        "argmin",
        [helper.make_tensor_value_info("latent", getattr(TensorProto, kind), ["B", g * d, "h", "w"])],
        [helper.make_tensor_value_info("codes", TensorProto.INT32, ["B", g, "h", "w"])],
        [numpy_helper.from_array(codebook, "codebook")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[grouped_argmin_function(g, k, d)], opset_imports=opsets, ir_version=10)
    shapes = {"latent": Profile((1, g * d, 16, 16), (1, g * d, 90, 160), (4, g * d, 90, 160))}
    values = {"latent": kind.lower().replace("float", "float32") if kind == "FLOAT" else "float16", "codes": "int32"}
    options = BuildOptions(parts=(Part.QUANTIZER,), shapes=((16, 16),), target="rtx")
    return build_plan(
        EngineJob("argmin", model.SerializeToString(), Path("argmin.onnx"), values, 0, [shapes], options)
    ).activation_bytes


@printed
def errors_of_a_good_build(folder: str) -> list[str]:
    """What the library logs as errors while it builds an engine."""
    build_plan(job_of(Bundle.open(folder), "fp16", Part.DEQUANTIZER))
    return process_logger(import_tensorrt("rtx")).errors


@printed
def stale_error_then_small_workspace(folder: str) -> None:
    """An error of an earlier job, then a build that fails."""
    process_logger(import_tensorrt("rtx")).errors.append("cudaError 35: an error of an earlier phase")
    build_plan(job_of(Bundle.open(folder), "fp16", Part.DECODER, workspace=1024))


@printed
def refused_network(folder: str) -> None:
    """A network that the library does not make: it knows no such flag."""
    engine_builder._Build.network_flags = lambda self: 1 << 30  # type: ignore[method-assign]
    build_plan(job_of(Bundle.open(folder), "fp16", Part.DECODER))


@printed
def changed(folder: str, what: str) -> None:
    """A graph that cannot be built."""
    bundle = Bundle.open(folder)
    job = job_of(bundle, "fp16", Part.DECODER)
    model, path, shapes = job.model, job.graph_path, job.profiles
    if what == "damaged":
        model = model[:-3000]
    elif what == "unknown operator":
        proto = onnx.load_model_from_string(model)
        proto.graph.node[5].op_type = "Foo"
        model = proto.SerializeToString()
    elif what == "no weights":
        path = Path("elsewhere") / "decoder.onnx"
    elif what == "channels":
        shapes = [{name: Profile(*((1, 31, 4, 6),) * 3) for name in shapes[0]}]
    elif what == "order":
        shapes = [{name: Profile((2, 32, 4, 6), (1, 32, 4, 6), (1, 32, 4, 6)) for name in shapes[0]}]
    elif what == "types":
        job.values["image"] = "float32"  # type: ignore[index]
    build_plan(EngineJob(job.name, model, path, job.values, 0, shapes, job.options))


@printed
def progress(folder: str) -> list[list[Any]]:
    """All that is reported of one build."""
    seen: list[list[Any]] = []
    build_plan(job_of(Bundle.open(folder), "fp16", Part.DECODER), lambda phase, share: seen.append([phase, share]))
    return seen


@printed
def cancelled(folder: str) -> dict[str, Any]:
    """A build that is interrupted at its fifth step, and what the library says."""
    steps = 0

    def report(phase: str, share: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt

    try:
        build_plan(job_of(Bundle.open(folder), "fp16", Part.DECODER), report)
    except KeyboardInterrupt:
        return {"steps": steps, "said": process_logger(import_tensorrt("rtx")).errors}
    return {"steps": steps, "said": None}


@printed
def load_without_driver(file: str) -> None:
    """Deserialise an engine where no driver is."""
    from mgvq_export.ops.trt_machine import Machine
    from mgvq_export.runtime.tensorrt.engines import EngineLoader

    trt = import_tensorrt("rtx")
    loader = EngineLoader(Machine(trt.__version__, "NVIDIA GeForce RTX 3090", "8.6", "rtx"))
    loader.deserialize(Path(file).read_bytes(), "fp16/decoder", None)


#: Variables in our code that hold objects which only this library has, by the class they are of.
RTX_OBJECTS = {"rtx_engine": "ICudaEngine", "rtx_cache": "IRuntimeCache"}
MODULES = {
    "export/engines/builder.py": {"rtx_config": "IBuilderConfig"},
    "ops/trt_machine.py": {},
    "runtime/tensorrt/errors.py": {},
    "runtime/tensorrt/engines.py": {},
    "runtime/tensorrt/contexts.py": {"rtx_config": "IRuntimeConfig"},
    "runtime/tensorrt/session.py": {},
    "runtime/tensorrt/describe.py": {},
}


@printed
def missing_names() -> dict[str, Any]:
    """Names of TensorRT that our code uses: those that this library does not have, and those seen in contexts.py."""
    from mgvq_export.tests.support import api_scan

    root = Path(__file__).resolve().parents[4]
    api_scan.MODULES["rtx"] = "tensorrt"
    known = dict(api_scan.OBJECTS)
    used: dict[str, Any] = {}
    for module, objects in MODULES.items():
        api_scan.OBJECTS.update(known | RTX_OBJECTS | objects)
        found = api_scan.used_names((root / module).read_text())
        used |= dict.fromkeys(found, module)
    missing = []
    for name in used:
        place: Any = import_tensorrt("rtx")
        for step in name.split(".")[1:]:
            if step.endswith("()"):
                break
            if not hasattr(place, step):
                missing.append(name)
                break
            place = getattr(place, step)
    return {"missing": missing, "contexts": [name for name, module in used.items() if module.endswith("contexts.py")]}


@printed
def full_size(folder: str) -> dict[str, Any]:
    """Engines for one image of 2560x1440: their activation memory, and the host memory of the largest build."""
    import resource

    from mgvq_export.export.engines.build import build_engines
    from mgvq_export.export.engines.cache import BuildCache

    options = BuildOptions(shapes=((1440, 2560),), target="rtx")
    engines = build_engines(Bundle.open(folder), options, cache=BuildCache(Path(folder).parent / "cache"))
    return {
        "activation_bytes": {str(engine.part): engine.record.activation_bytes for engine in engines},
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }
