"""A stand-in for the ``tensorrt`` module that records what the builder is asked, and fails where a test wants it to.

It answers only what ``export/engines/builder.py`` uses; ``fake_gpu.py`` adds a runtime to it. That those names and keywords exist in TensorRT is tested against the real
bindings in ``test_plugin_contract.py``.
"""

import enum
import types
from pathlib import Path
from typing import Any

import onnx

PLAN = b"engine bytes"
TIMINGS = b"timings"


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 5  # not TensorRT's numbers, which differ between versions: nothing may depend on them
    PREFER_AOT_PYTHON_PLUGINS = 7


class BuilderFlag(enum.Enum):
    TF32 = enum.auto()
    VERSION_COMPATIBLE = enum.auto()


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = enum.auto()
    DETAILED = enum.auto()


class HardwareCompatibilityLevel(enum.Enum):
    NONE = enum.auto()
    AMPERE_PLUS = enum.auto()


class MemoryPoolType(enum.Enum):
    WORKSPACE = enum.auto()


class LayerType(enum.Enum):
    CONVOLUTION = enum.auto()
    PLUGIN_V3 = enum.auto()


class Severity(enum.Enum):
    INTERNAL_ERROR = enum.auto()
    ERROR = enum.auto()
    INFO = enum.auto()


class ILogger:
    Severity = Severity


class IProgressMonitor:
    pass


class Recorder:
    """One run of the builder: ``calls`` in order, as (name, arguments...). ``make_plan(network, config)`` gives the engine's bytes.

    ``failure`` names the step that fails: start, parse, inlined (the plugin is not taken), types, profile, build, out of memory.
    ``during_build(monitor)`` runs inside build_serialized_network, in place of plain progress.
    """

    def __init__(self, failure: str = "", version: str = "11.4.0.106"):
        self.failure = failure
        self.calls: list[tuple[Any, ...]] = []
        self.stale_timings = False
        self.during_build = None
        self.make_plan = lambda network, config: PLAN
        self.module = self._module(version)

    def __call__(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]

    def _module(self, version: str) -> Any:
        plain = (
            NetworkDefinitionCreationFlag,
            BuilderFlag,
            ProfilingVerbosity,
            HardwareCompatibilityLevel,
            MemoryPoolType,
            LayerType,
            ILogger,
            IProgressMonitor,
        )
        members = {kind.__name__: kind for kind in plain}
        members |= {name: f"DataType.{name}" for name in ("float32", "float16", "int32", "int64", "uint8")}
        members |= {"__version__": version, "Builder": lambda log: Builder(self, log), "OnnxParser": lambda *a: Parser(self, *a)}
        module = types.ModuleType("fake_tensorrt")
        module.__dict__.update(members)
        return module


class Network:
    def __init__(self):
        self.inputs, self.outputs, self.layers = [], [], []

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, index):
        return self.inputs[index]

    def get_output(self, index):
        return self.outputs[index]

    def get_layer(self, index):
        return self.layers[index]


class Parser:
    num_errors = 2

    def __init__(self, record: Recorder, network: Network, messages: Any):
        self.record, self.network = record, network

    def parse(self, model: bytes, path: str) -> bool:
        self.record("parse", path)
        if self.record.failure == "parse":
            return False
        self.network.model, self.network.path = model, path
        proto = onnx.load_model_from_string(model)
        for tensor in proto.graph.initializer:  # what the real parser does with the path
            for entry in tensor.external_data:
                assert entry.key != "location" or (Path(path).parent / entry.value).is_file()
        for node in proto.graph.node:
            taken = any(a.name == "plugin_namespace" for a in node.attribute) and "register" in self.record.names()
            plugin = taken and self.record.failure != "inlined"
            self.network.layers.append(types.SimpleNamespace(type=LayerType.PLUGIN_V3 if plugin else LayerType.CONVOLUTION))
        for values, tensors in ((proto.graph.input, self.network.inputs), (proto.graph.output, self.network.outputs)):
            for value in values:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
                if self.record.failure == "types":
                    dtype = "int64"
                tensors.append(types.SimpleNamespace(name=value.name, dtype=f"DataType.{dtype}"))
        return True

    def get_error(self, index: int) -> Any:
        values = {"node": 3, "node_name": "encoder.stages.1/conv", "node_operator": "Conv", "desc": "weights\nof no type"}
        return types.SimpleNamespace(**{name: (lambda value=value: value) for name, value in values.items()})


class Config:
    def __init__(self, record: Recorder):
        object.__setattr__(self, "record", record)
        object.__setattr__(self, "profiles", [])

    def __setattr__(self, name: str, value: Any) -> None:
        self.record("set", name, value)
        object.__setattr__(self, name, value)

    def clear_flag(self, flag):
        self.record("clear_flag", flag)

    def set_flag(self, flag):
        self.record("set_flag", flag)

    def set_memory_pool_limit(self, pool, size):
        self.record("set_memory_pool_limit", pool, size)

    def add_optimization_profile(self, profile):
        self.record("add_optimization_profile", profile.shapes)
        self.profiles.append(profile.shapes)
        return -1 if self.record.failure == "profile" else 0

    def create_timing_cache(self, data):
        self.record("create_timing_cache", data)
        return types.SimpleNamespace(data=data, serialize=lambda: TIMINGS)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.record("set_timing_cache", cache.data, ignore_mismatch)
        return not (self.record.stale_timings and cache.data)


class Builder:
    def __init__(self, record: Recorder, messages: Any):
        self.record, self.messages = record, messages
        if record.failure == "start":
            raise TypeError("factory function returned nullptr")

    def create_network(self, flags):
        self.record("create_network", flags)
        return Network()

    def create_builder_config(self):
        self.record("create_builder_config")
        return Config(self.record)

    def create_optimization_profile(self):
        shapes = {}
        return types.SimpleNamespace(shapes=shapes, set_shape=lambda name, *three: shapes.__setitem__(name, three))

    def build_serialized_network(self, network, config):
        self.record("build_serialized_network")
        if self.record.failure in ("build", "out of memory"):
            if self.record.failure == "out of memory":
                self.messages.log(Severity.INFO, "nothing to see")
                self.messages.log(Severity.ERROR, "out of memory:\n 8 GiB")
            return None
        monitor = config.progress_monitor
        if self.record.during_build is not None:
            return self.record.make_plan(network, config) if self.record.during_build(monitor) else None
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Tactics", "Building engine", 5)
        alive = monitor.step_complete("Tactics", 0) and monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Tactics")
        monitor.phase_finish("Building engine")
        return self.record.make_plan(network, config) if alive else None
