"""Run by test_plugin_contract.py in a subprocess: drives the plugin through TensorRT's own template class, prints JSON.

What the stub libraries cannot give is faked here: the plugin registry, and the builder of dimension expressions, whose
expressions are strings. Everything else, validators included, is TensorRT's.
"""

import json

import tensorrt as trt
import tensorrt.plugin as trtp
from tensorrt.plugin import _lib, _plugin_class, _tensor

from mgvq_export.ops import trt_plugin


class Registry:
    def __init__(self):
        self.creators = {}

    def register_creator(self, creator, namespace):
        assert (creator.name, namespace) not in self.creators, "registered twice"
        self.creators[creator.name, namespace] = creator
        return True

    def get_creator(self, name, version, namespace):
        assert version == "1"
        return self.creators.get((name, namespace))


class Expr:
    def __init__(self, text, value=None):
        self.text, self.value = text, value

    def is_constant(self):
        return self.value is not None

    def get_constant_value(self):
        return self.value

    def is_size_tensor(self):
        return False


class Builder:
    def constant(self, value):
        return Expr(str(value), value)

    def operation(self, op, a, b):
        return Expr(f"{op.name}({a.text},{b.text})")


class Recorded:
    """In place of the class that hands an int32 expression to C++; SymInt32 alone makes one."""

    def __init__(self, symbol):
        assert isinstance(symbol, trtp.SymInt32), type(symbol)
        self.text = symbol._expr.text


class Setter(dict):
    nbSymExprs = None


class Launch:
    pass


def text(expression):
    """The fake expression inside what TensorRT would receive."""
    assert isinstance(expression, Recorded), type(expression)
    return expression.text


def tensor(dims, dtype):
    desc = trt.DynamicPluginTensorDesc()
    desc.desc.dims = dims
    desc.desc.type = dtype
    desc.desc.format = trt.TensorFormat.LINEAR
    desc.min = desc.opt = desc.max = [4 if dim == -1 else dim for dim in dims]
    return desc


def probe(plugin, latent_type):
    types = plugin.get_output_data_types([latent_type, trt.float32], [4, 3])
    latent = [Expr("B"), Expr("32", 32), Expr("h"), Expr("w")]
    codebook = [Expr("8", 8), Expr("2048", 2048), Expr("4", 4)]
    shapes = plugin.get_output_shapes([latent, codebook], [], Builder())
    in_out = [tensor([-1, 32, -1, -1], latent_type), tensor([8, 2048, 4], trt.float32), tensor([-1, 8, -1, -1], trt.int32)]
    supported = plugin.get_supported_format_combinations(in_out, 2)
    plugin.configure_plugin(in_out[:2], in_out[2:])
    tactics = plugin.get_valid_tactics()
    plugin.set_tactic(0)
    launch, setter = Launch(), Setter()
    plugin.get_launch_params([latent, codebook], in_out, 2, launch, setter, Builder())
    name, ptx = plugin.get_kernel([d.desc for d in in_out[:2]], [in_out[2].desc])
    return {
        "types": [t.name for t in types],
        "shapes": [[e.text for e in shape] for shape in shapes],
        "supported": [f"{d.type.name} {d.format.name}" for d in supported],
        "tactics": tactics,
        "launch": {key: text(value) for key, value in vars(launch).items()},
        "scalars": [text(setter[i]) for i in range(setter.nbSymExprs)],
        "kernel": name if isinstance(name, str) else name.decode(),
        "ptx_ends_in_nul": ptx.endswith(b"\0"),
        "entry_found": f".entry {name}(".encode() in ptx,
        "target": next(line for line in ptx.decode().splitlines() if line.startswith(".target")),
    }


registry = Registry()
trt.get_plugin_registry = lambda: registry
trt.IDimensionExpr = Expr
_tensor.SymExprImpl = Recorded
trt.DimsExprs = lambda size: [None] * size

assert not trt_plugin.is_registered()
trt_plugin.register_plugin(architecture=80)
trt_plugin.register_plugin(architecture=75)  # a second call changes the architecture only
assert trt_plugin.is_registered()
creator = registry.get_creator("GroupedArgmin", "1", "mgvq")
answer = {}
for dtype in (trt.float32, trt.float16):
    request = trt.QuickPluginCreationRequest.STRICT_AOT
    plugin = creator.create_plugin("GroupedArgmin", "mgvq", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD, request)
    assert isinstance(plugin, _plugin_class._TemplateAOTPlugin)
    answer[dtype.name] = probe(plugin, dtype)
answer["attributes"] = list(_lib.QDP_REGISTRY[trt_plugin.PLUGIN_ID].input_attrs)
answer["op"] = hasattr(trtp.op.mgvq, "GroupedArgmin")
print(json.dumps(answer))
