"""Builds ONNX graphs: nodes with stable names, typed values, weights stored once for all graphs of a precision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mgvq_export.core.errors import InputError
from mgvq_export.core.manifest import WEIGHTS, TensorEntry
from mgvq_export.core.precision_plan import NodePlan, PrecisionPlan
from mgvq_export.core.version import __version__
from mgvq_export.export.graphs import eight_bit

OPSET = 20  # within what TensorRT 10.x and 11.x parse (9 to 24); nothing newer is needed
IR_VERSION = 10

ALIGNMENT = 4096  # one page: runtimes may map tensors instead of copying them

FLOAT, FLOAT16, INT32, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64
NUMPY_TYPE: dict[int, np.dtype[np.generic]] = {FLOAT: np.dtype(np.float32), FLOAT16: np.dtype(np.float16)}
ONNX_TYPE = {"fp32": FLOAT, "fp16": FLOAT16}

#: Values of a node's attributes.
Attribute = int | str | Sequence[int]

_SCALAR = "scalar:"


@dataclass
class WeightStore:
    """The weights of one precision, stored once and shared by all its graphs as ONNX external data."""

    offsets: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, array: np.ndarray) -> None:
        """Store ``array`` under ``name``; a name stored before must hold the same values."""
        array = np.ascontiguousarray(array)
        if name in self.offsets:
            stored = self.offsets[name][1]
            if stored.dtype != array.dtype or not np.array_equal(stored, array):
                raise ValueError(f"weight {name} is stored already with other values")
            return
        self.offsets[name] = (self.size, array)
        self.size += math.ceil(array.nbytes / ALIGNMENT) * ALIGNMENT

    def tensor(self, name: str, stored: str, shape: Sequence[int]) -> TensorProto:
        """An initializer called ``name`` that refers to the weight ``stored``, seen with ``shape``."""
        offset, array = self.offsets[stored]
        tensor = TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def write(self, path: Path) -> None:
        """Write all weights to ``path``, each at its offset, in little-endian byte order."""
        with path.open("wb") as file:
            for offset, array in self.offsets.values():
                file.seek(offset)
                if array.itemsize > 1:
                    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
                file.write(array.tobytes())
            file.truncate(self.size)


class GraphBuilder:
    """One ONNX graph under construction.

    A node has the name of its PyTorch module and, where a layer takes several nodes, a slash and the step
    (``encoder.stages.3.op_list.0.main.conv2.norm/scale``). Its (first) output has the same name, so that a value in a profile or a
    comparison can be traced to its layer. :meth:`node` casts float inputs to the type the node runs in; nodes added within
    :meth:`float32` stay float32 in a float16 graph.

    A precision plan overrides the type of every :meth:`node` that it names, or makes its inputs pass through eight bits
    (QuantizeLinear and DequantizeLinear, which TensorRT fuses into an 8-bit convolution). Quantization happens here, as the
    graph is written, and not by rewriting finished graphs (``onnxruntime.quantization``). So all graphs of a bundle share one file of
    weights, nodes keep the modules' names, scales have the graph's type, and nodes that the plan does not name are written byte for
    byte as without it.
    """

    def __init__(self, weights: WeightStore, dtype: int, plan: PrecisionPlan | None = None):
        self.weights = weights
        self.plan = plan
        self.default = self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.types: dict[str, int] = {}
        #: Nodes whose precision a plan may choose: all that :meth:`node` added, by name.
        self.choices: dict[str, onnx.NodeProto] = {}
        self._names: set[str] = set()
        self._untyped: dict[str, np.ndarray] = {}  # weights and scalars that no node has read yet
        self._quantized: dict[tuple[str, str, float, int], str] = {}

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare a graph input; string dimensions are dynamic."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        self.types[name] = dtype
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str]) -> None:
        """Declare ``value`` a graph output called ``name``, in the graph's own float type if it is a float."""
        if self.types[value] in NUMPY_TYPE:
            value = self.cast(value, self.default)
        self._rename(value, name)
        self.outputs.append(helper.make_tensor_value_info(name, self.types[name], shape))

    def _rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            node.output[:] = [new if value == old else value for value in node.output]
            node.input[:] = [new if value == old else value for value in node.input]
        self.types[new] = self.types.pop(old)

    @contextmanager
    def float32(self) -> Iterator[None]:
        """Nodes added inside run in float32 whatever the graph's type."""
        outer, self.dtype = self.dtype, FLOAT
        try:
            yield
        finally:
            self.dtype = outer

    def cast(self, value: str, dtype: int) -> str:
        """``value`` in ``dtype``; one Cast node per value and type."""
        if self.types[value] == dtype:
            return value
        name = f"{value}/to_{TensorProto.DataType.Name(dtype).lower()}"
        if name not in self._names:
            self._append("Cast", [value], [name], name, {"to": dtype})
            self.types[name] = dtype
        return name

    def node(
        self, op: str, *inputs: str, name: str, outputs: Sequence[str] = (), dtype: int | None = None, **attributes: Attribute
    ) -> str:
        """Add a node and return its first output. Float inputs are cast to the type it runs in; ``dtype``: the output's, when it differs.

        Raises :class:`InputError` when the plan asks for what the node cannot do.
        """
        plan = self._plan(op, inputs, name, attributes)
        if plan is not None and plan.quantized:
            runs_in = self.dtype
            try:
                read = self._read_quantized(plan, inputs, name)
            except InputError as error:  # a scale that does not fit
                raise InputError(f"node {name}: {error}") from None
        else:
            runs_in = self.dtype if plan is None else ONNX_TYPE[plan.precision]
            read = [self._read(value, runs_in) for value in inputs]
        outputs = tuple(outputs) or (name,)
        self.choices[name] = self._append(op, read, outputs, name, attributes)
        for output in outputs:
            self.types[output] = runs_in if dtype is None else dtype
        return outputs[0]

    def _plan(self, op: str, inputs: Sequence[str], name: str, attributes: Mapping[str, Attribute]) -> NodePlan | None:
        """What the plan says of a node; checked. None: the plan does not name it."""
        plan = self.plan.nodes.get(name) if self.plan else None
        if plan is not None:
            weight = self._untyped.get(inputs[1]) if op == "Conv" else None
            groups = attributes.get("group", 1)
            assert isinstance(groups, int)
            eight_bit.check_node(
                name,
                op,
                plan,
                groups=groups,
                channels=0 if weight is None else len(weight),
                activations=tuple(value not in self._untyped and value not in self.initializers for value in inputs),
            )
        return plan

    def _read(self, value: str, dtype: int) -> str:
        """``value`` as a node that runs in ``dtype`` reads it: floats in that type."""
        if value in self._untyped:
            return self._typed(value, dtype)
        if value not in self.types:
            raise ValueError(f"no value {value}")
        return self.cast(value, dtype) if self.types[value] in NUMPY_TYPE else value

    def _typed(self, name: str, dtype: int) -> str:
        """A weight or scalar in the type of the node that reads it; weights are stored."""
        array = self._untyped.pop(name)
        kind = TensorProto.DataType.Name(dtype).lower()
        if name.startswith(_SCALAR):
            return self.constant(array.astype(NUMPY_TYPE[dtype]), f"{kind}:{name.removeprefix(_SCALAR)}")
        return self._store(self._marked(name, dtype), array.astype(NUMPY_TYPE[dtype], copy=False))

    def _marked(self, name: str, dtype: int) -> str:
        # The same tensor may be needed in two types (an island in a float16 graph): the one that is not the graph's is marked.
        return name if dtype == self.default else f"{name}.{TensorProto.DataType.Name(dtype).lower()}"

    def _store(self, name: str, array: np.ndarray) -> str:
        self.weights.add(name, array)
        return self._external(name, name, array.shape)

    def _read_quantized(self, plan: NodePlan, inputs: Sequence[str], name: str) -> list[str]:
        """The inputs of a node, those with a scale and the weights of a convolution through eight bits; its bias never is."""
        read = []
        for position, value in enumerate(inputs):
            if position in plan.scales:
                read.append(self._through_eight_bits(self._read(value, self.dtype), plan, position, name))
            elif value in self._untyped and position == 1:
                read.append(self._quantized_weight(value, plan, name))
            else:
                read.append(self._read(value, self.dtype))
        return read

    def _through_eight_bits(self, value: str, plan: NodePlan, position: int, name: str) -> str:
        """``value`` quantized and dequantized; one pair of nodes per value, scale and type, called after its first reader."""
        dtype = self.types[value]
        scale = eight_bit.stored_scale(plan.scales[position], plan.precision, NUMPY_TYPE[dtype])
        key = (value, plan.precision, scale.item(), dtype)
        if key not in self._quantized:
            kind = TensorProto.DataType.Name(dtype).lower()
            constants = (
                self.constant(scale, f"{kind}:{scale.item()!r}"),
                self.constant(np.zeros((), eight_bit.numpy_type(plan.precision)), f"{plan.precision}:0"),
            )
            quantized, restored = f"{name}/quantize_{position}", f"{name}/dequantize_{position}"
            self.raw_node("QuantizeLinear", value, *constants, name=quantized, dtype=eight_bit.ONNX_TYPE[plan.precision])
            self._quantized[key] = self.raw_node("DequantizeLinear", quantized, *constants, name=restored, dtype=dtype)
        return self._quantized[key]

    def _quantized_weight(self, weight: str, plan: NodePlan, name: str) -> str:
        """A convolution's weight [O, I, kh, kw], stored in eight bits with a scale per output channel."""
        array, dtype = self._untyped.pop(weight), self.dtype
        stored = self._marked(f"{weight}.{plan.precision}", dtype)
        scales = eight_bit.weight_scales(array, plan.precision, NUMPY_TYPE[dtype], plan.weight_scales)
        values = self._store(stored, eight_bit.quantize(array, scales[:, None, None, None], plan.precision))
        scale = self._store(f"{stored}.scale", scales)
        return self.raw_node("DequantizeLinear", values, scale, name=f"{name}/dequantize_weight", dtype=dtype, axis=0)

    def raw_node(self, op: str, *inputs: str, name: str, dtype: int, domain: str = "", **attributes: Attribute) -> str:
        """Add a node whose inputs keep their types and whose one output has type ``dtype``."""
        self._append(op, inputs, (name,), name, attributes, domain)
        self.types[name] = dtype
        return name

    def _append(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        attributes: Mapping[str, Attribute],
        domain: str = "",
    ) -> onnx.NodeProto:
        if name in self._names:
            raise ValueError(f"two nodes are called {name}")
        self._names.add(name)
        node = helper.make_node(op, inputs, outputs, name=name, domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self.nodes.append(node)
        return self.nodes[-1]

    def weight(self, name: str, array: np.ndarray, *, dtype: int | None = None) -> str:
        """A trained tensor as an initializer kept outside the graph, in ``dtype``, or in the type of the node that reads it next."""
        if dtype is None:
            self._untyped[name] = array
            return name
        return self._store(self._marked(name, dtype), array.astype(NUMPY_TYPE[dtype]))

    def view(self, name: str, stored: str, shape: Sequence[int]) -> str:
        """Another shape of a weight stored already, as an initializer called ``name``; the bytes are shared."""
        return self._external(name, stored, shape)

    def _external(self, name: str, stored: str, shape: Sequence[int]) -> str:
        if name not in self.initializers:
            self.initializers[name] = self.weights.tensor(name, stored, shape)
            self.types[name] = self.initializers[name].data_type
        return name

    def integers(self, *values: int) -> str:
        """A shape, axes or index list as an int64 initializer inside the graph; equal lists are one initializer."""
        return self.constant(np.array(values, np.int64), f"int64:{','.join(map(str, values))}")

    def constant(self, array: np.ndarray, name: str) -> str:
        """A small constant inside the graph, under a name that says its value."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
            self.types[name] = self.initializers[name].data_type
        return name

    def scalar(self, value: float) -> str:
        """A float constant, in the type of the node that reads it next."""
        name = f"{_SCALAR}{value!r}"
        self._untyped[name] = np.array(value, np.float64)
        return name

    def model(self, name: str, functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
        """The finished model: opset, producer, and the bodies of the custom operators it uses."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(f.domain, 1) for f in functions)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            functions=functions,
            ir_version=IR_VERSION,
            producer_name="mgvq-export",
            producer_version=__version__,
        )


def value_entry(value: onnx.ValueInfoProto) -> TensorEntry:
    """Name, dtype and shape of a graph's input or output; dynamic dimensions by name."""
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorEntry(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
