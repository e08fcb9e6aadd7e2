"""Which names of TensorRT and of CUDA's Python bindings a source file uses, read from its syntax tree."""

import ast
from typing import Any

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
    "tensor": "ITensor",
    "parser_error": "ParserError",
}


def used_names(source: str) -> dict[str, dict[str, list[Any]]]:
    """dotted TensorRT name -> ``keywords`` it is called with, ``counts`` of all arguments, one per call, and whether it is ``stored`` to.

    ``{"tensorrt.OnnxParser.parse": {"keywords": ["path"], "counts": [2], "stored": []}}``
    """
    tree = ast.parse(source)
    chains = _chains(tree)
    if not any(_place(chain, MODULES) is not None for chain, _, _ in chains):
        return {}  # it does not speak to TensorRT: its variables are called as they like
    hidden = {chain[0] for chain, _, _ in chains} & _aliases(tree)
    assert not hidden, f"{sorted(hidden)} stand for something of TensorRT's: write it out, so that what is used of it is seen"
    used: dict[str, dict[str, list[Any]]] = {}
    for chain, call, stored in chains:
        name = _resolve(chain)
        if name is not None:
            entry = used.setdefault(name, {"keywords": [], "counts": [], "stored": []})
            if stored:
                entry["stored"] = [True]
            if call is not None:
                entry["keywords"] += [k.arg for k in call.keywords if k.arg and k.arg not in entry["keywords"]]
                if not any(isinstance(argument, ast.Starred) for argument in call.args):
                    entry["counts"].append(len(call.args) + len(call.keywords))
    return used


def cuda_calls(source: str) -> set[tuple[str, int | None]]:
    """(name in ``cuda.bindings.runtime``, number of arguments or None where it is not called) of everything a file uses of it.

    ``cuda(cudart.cudaMalloc, size)`` is a call of ``cudaMalloc`` with one argument.
    """
    tree = ast.parse(source)
    found = set()
    for chain, call, _ in _chains(tree):
        place = _place(chain, {"cudart": ""})
        if place is not None:
            assert call is None or not call.keywords, f"{'.'.join(chain)} is called with keywords"
            found.add((".".join(chain[place + 1 :]), None if call is None else len(call.args)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cuda" and node.args:
            chain = _chain(node.args[0])
            if chain[:1] == ["cudart"]:
                found.add((".".join(chain[1:]), len(node.args) - 1))
    return found


def _chains(tree: ast.Module) -> list[tuple[list[str], ast.Call | None, bool]]:
    """Every ``a.b.c``, the longest only, the call it is the function of, and whether it is assigned to."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(parents.get(node), ast.Attribute) and (chain := _chain(node)):
            parent = parents.get(node)
            call = parent if isinstance(parent, ast.Call) and parent.func is node else None
            found.append((chain, call, isinstance(node.ctx, ast.Store)))
    return found


def _chain(node: ast.expr) -> list[str]:
    """``a.b(1).c`` is ``["a", "b()", "c"]``."""
    names: list[str] = []
    called = ""
    while isinstance(node, (ast.Attribute, ast.Call)):
        if isinstance(node, ast.Attribute):
            names.insert(0, node.attr + called)
            called, node = "", node.value
        else:
            called, node = "()", node.func
    return [node.id + called, *names] if isinstance(node, ast.Name) else []


def _aliases(tree: ast.Module) -> set[str]:
    """Variables that were given something of TensorRT's modules, such as ``kinds`` in ``kinds = trt.BuilderFlag``."""
    return {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and _place(_chain(node.value), MODULES) is not None
        and not isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _place(chain: list[str], known: dict[str, str]) -> int | None:
    """Where in ``a.b._trt.c`` a known name stands, with or without an underscore before it, and not last."""
    return next((index for index, name in enumerate(chain[:-1]) if name.lstrip("_") in known), None)


def _resolve(chain: list[str]) -> str | None:
    place = _place(chain, MODULES)
    if place is not None:
        return ".".join([MODULES[chain[place].lstrip("_")], *chain[place + 1 :]])
    place = _place(chain, OBJECTS)
    if place is None:
        return None
    # What an attribute's own attributes are, is not known; what a method gives, its docstring says.
    known = chain[place + 1 : place + 3 if chain[place + 1].endswith("()") else place + 2]
    return ".".join(["tensorrt", OBJECTS[chain[place].lstrip("_")], *known])


#: Run with the bindings: reads what :func:`used_names` gave as JSON from argv[1], prints what does not exist. Methods written in
#: C++ say their signatures, one per overload, in their docstrings only: ``name(self: Kind, first: int, second: int = 3) -> bool``.
CHECK = """
import json, re, sys
import tensorrt, tensorrt.plugin

def parameters(text):
    depth, parts = 0, [""]
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip() and not part.strip().startswith("self:")]

def takes(doc, count):
    signatures = re.findall(r"^(?:\\d+\\. )?\\w+\\((self: .*)\\)(?: -> .*)?$", doc, re.MULTILINE)
    counts = [(sum(" = " not in part for part in parameters(text)), len(parameters(text))) for text in signatures]
    return not counts or any(least <= count <= most for least, most in counts)

def gives(method):
    kind = re.search(r"-> tensorrt\\.tensorrt\\.(\\w+)$", method.__doc__ or "", re.MULTILINE)
    return kind and getattr(tensorrt, kind[1])

missing = []
for name, used in json.loads(sys.argv[1]).items():
    value = tensorrt
    for part in name.split(".")[1:]:
        if not hasattr(value, part.removesuffix("()")):
            missing.append(name)
            break
        value = getattr(value, part.removesuffix("()"))
        if part.endswith("()") and (value := gives(value)) is None:
            break
    else:
        text = (value.__init__.__doc__ if isinstance(value, type) else value.__doc__) or ""
        code = getattr(value, "__code__", None) or getattr(getattr(value, "__init__", None), "__code__", None)
        names = code.co_varnames if code else None
        missing += [f"{name}({k}=)" for k in used["keywords"] if not (k in names if names else f"{k}:" in text)]
        if used["stored"] and getattr(value, "fset", None) is None:
            missing.append(f"{name} = ...")
        if not code and not name.endswith(".__init__"):
            missing += [f"{name} with {count} arguments" for count in set(used["counts"]) if not takes(text, count)]
print(json.dumps(missing))
"""
