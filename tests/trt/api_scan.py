"""Which names of TensorRT a source file uses, read from its syntax tree."""

import ast

#: Names that stand for TensorRT modules in our code.
MODULES = {"trt": "tensorrt", "tensorrt": "tensorrt", "trtp": "tensorrt.plugin"}
#: Variables (also as ``self.x`` and ``self._x``) that always hold an object of this class in modules that use TensorRT.
OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "timing_cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "layer": "ILayer",
}


def used_names(source: str) -> dict[str, list[str]]:
    """dotted TensorRT name -> keyword names it is called with, e.g. ``tensorrt.Builder.create_network -> ["flags"]``."""
    used: dict[str, list[str]] = {}
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or isinstance(parents.get(node), ast.Attribute):
            continue  # only the longest chain
        chain = _chain(node)
        name = _resolve(chain) if chain else None
        if name is None:
            continue
        parent = parents.get(node)
        called = isinstance(parent, ast.Call) and parent.func is node
        keywords = [k.arg for k in parent.keywords if k.arg] if called and isinstance(parent, ast.Call) else []
        used.setdefault(name, [])
        used[name] += [k for k in keywords if k not in used[name]]
    return used


def _chain(node: ast.expr) -> list[str]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def _resolve(chain: list[str]) -> str | None:
    if chain[0] in MODULES:
        return ".".join([MODULES[chain[0]], *chain[1:]])
    if chain[0] == "self" and len(chain) > 2:
        chain = [chain[1].lstrip("_"), *chain[2:]]
    if chain[0] in OBJECTS and len(chain) > 1:
        return f"tensorrt.{OBJECTS[chain[0]]}.{chain[1]}"  # what an attribute's own attributes are, is not known
    return None


#: Run with the bindings: reads {name: keywords} as JSON from argv[1], prints what does not exist.
CHECK = """
import importlib, json, sys
import tensorrt, tensorrt.plugin
missing = []
for name, keywords in json.loads(sys.argv[1]).items():
    value = tensorrt
    for part in name.split(".")[1:]:
        if not hasattr(value, part):
            missing.append(name)
            break
        value = getattr(value, part)
    else:
        text = (value.__init__.__doc__ if isinstance(value, type) else value.__doc__) or ""
        code = getattr(value, "__code__", None) or getattr(getattr(value, "__init__", None), "__code__", None)
        names = code.co_varnames if code else None
        missing += [f"{name}({k}=)" for k in keywords if not (k in names if names else f"{k}:" in text)]
print(json.dumps(missing))
"""
