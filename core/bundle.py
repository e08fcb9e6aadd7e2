"""Bundles: a folder with a manifest, the ONNX graphs of one or more precisions, and TensorRT engines.

The only module that knows the names of files inside a bundle::

    manifest.json
    <precision>/<part>.onnx         one per Part
    <precision>/weights.bin         the weights of all graphs of that precision
    <precision>/plan.json           the plan it was made by, if it is neither fp32 nor fp16
    engines/<gpu>-trt<version>/<precision>/*.engine
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mgvq_export.core.errors import BundleError, InputError, SpecError
from mgvq_export.core.files import PathLike, atomic_write_bytes, sha256_file
from mgvq_export.core.precision_plan import PrecisionPlan
from mgvq_export.core.spec import TRUNKS, ModelSpec, Part, Reach

MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
FORMAT = "mgvq-bundle"
VERSION = 1

Size = tuple[int, int]

_BUILD_FLAGS = ("version_compatible", "hardware_compatible", "detailed")


def graph_name(precision: str, part: Part) -> str:
    """Path of one graph inside a bundle."""
    return f"{precision}/{part}.onnx"


def weights_name(precision: str) -> str:
    """Path of one precision's weights inside a bundle."""
    return f"{precision}/{WEIGHTS}"


def plan_name(precision: str) -> str:
    """Path of one precision's plan inside a bundle."""
    return f"{precision}/plan.json"


@dataclass
class Bundle:
    """An exported model on disk.

    ``open`` reads the manifest only; a file's hash is checked when its path is asked for, once.

    Attributes:
        path: the folder.
        manifest: its ``manifest.json``.
        spec: the network.
    """

    path: Path
    manifest: dict[str, Any]
    spec: ModelSpec
    _checked: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, path: PathLike) -> Bundle:
        """The bundle in folder ``path``. Raises :class:`BundleError` when it is none, or of a newer version."""
        path = Path(path)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = "is not a bundle: it has no manifest.json" if path.is_dir() else "does not exist"
            raise BundleError(f"{path} {what}; make one with: mgvq-export export CHECKPOINT -o {path}") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"cannot read {path / MANIFEST}: {error}; export the bundle again") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise BundleError(f"{path / MANIFEST} is no manifest of a bundle; export the bundle again")
        if manifest.get("version") != VERSION:
            raise BundleError(f"{path} is a bundle of version {manifest.get('version')}; this release reads version {VERSION}")
        try:
            spec = ModelSpec.from_dict(manifest["spec"])
            manifest["codebook_sha256"], manifest["reach"], manifest["precisions"]
        except (KeyError, TypeError, SpecError) as error:
            raise BundleError(f"{path / MANIFEST} is damaged ({error}); export the bundle again") from error
        return cls(path, manifest, spec)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions it holds, e.g. ``("fp32", "fp16")``."""
        return tuple(self.manifest["precisions"])

    @property
    def codebook_sha256(self) -> str:
        """Hash of the codebook: tokens of equal hash are interchangeable."""
        return self.manifest["codebook_sha256"]

    @property
    def engines(self) -> list[dict[str, Any]]:
        """Records of the TensorRT engines built so far; ``file`` is relative to the bundle."""
        return self.manifest.get("engines", [])

    def reach(self, part: Part) -> Reach:
        """Strides and receptive field of a trunk part. Raises :class:`BundleError` for a part without one."""
        try:
            return Reach(**self.manifest["reach"][str(part)])
        except KeyError:
            raise BundleError(f"{self.path}: the graph {part} has no finite receptive field; only trunks can be tiled") from None

    def has_part(self, part: Part) -> bool:
        """Whether the network has this graph (small networks have no inner cut of the trunk)."""
        return all(str(part) in entry["graphs"] for entry in self.manifest["precisions"].values())

    def graph(self, precision: str, part: Part) -> dict[str, Any]:
        """The manifest's entry of one graph: file, sha256, bytes, inputs, outputs. Raises :class:`BundleError` if absent."""
        try:
            graphs = self.manifest["precisions"][precision]["graphs"]
        except KeyError:
            raise BundleError(
                f"{self.path} has no {precision} graphs; it has {', '.join(self.precisions)}: choose one, or export again with --precision {precision}"
            ) from None
        if str(part) not in graphs:
            raise BundleError(f"{self.path} has no graph {part}; {self.spec.name} has {', '.join(graphs)}")
        return graphs[str(part)]

    def plan(self, precision: str) -> PrecisionPlan | None:
        """The plan that a precision was made by; None for ``fp32`` and ``fp16`` as they are.

        Raises :class:`BundleError` when the bundle lacks the precision, or the plan's file is missing or has changed.
        """
        self.graph(precision, Part.QUANTIZER)  # names the precisions it has when this one is missing
        entry = self.manifest["precisions"][precision].get("plan")
        if entry is None:
            return None
        path = self.check_file(entry)
        try:
            return PrecisionPlan.load(path)
        except InputError as error:
            raise BundleError(f"{error}; export the bundle again") from error

    def base(self, precision: str) -> str:
        """``fp32`` or ``fp16``: the float type of a precision's graphs."""
        plan = self.plan(precision)
        return precision if plan is None else plan.base

    def kind(self, precision: str, side: str) -> str:
        """``fp32``, ``fp16``, ``int8`` or ``fp8``: the lowest type that the graphs of a side, ``encoder`` or ``decoder``, compute with."""
        plan = self.plan(precision)
        return precision if plan is None else plan.kind(side)

    def graph_path(self, precision: str, part: Part) -> Path:
        """Path of a graph whose bytes, and whose weights' bytes, are those of the export.

        Raises :class:`BundleError` when a file is missing or has changed.
        """
        entry = self.graph(precision, part)
        self.check_file(self.manifest["precisions"][precision]["weights"])
        return self.check_file(entry)

    def check_file(self, entry: Mapping[str, Any]) -> Path:
        """Path of the file in a manifest entry, after comparing its size and SHA-256. Raises :class:`BundleError`."""
        path, name = self._path(entry), entry["file"]
        if name in self._checked:
            return path
        try:
            size = path.stat().st_size
            found = sha256_file(path) if size == entry["bytes"] else None
        except (OSError, InputError) as error:
            raise self._unreadable(path, entry) from error
        self._compare(path, entry, size, found)
        self._checked.add(name)
        return path

    def read_file(self, entry: Mapping[str, Any]) -> bytes:
        """The bytes of the file in a manifest entry, compared with its size and SHA-256. Raises :class:`BundleError`.

        What is returned is what was compared, whatever happens to the file meanwhile.
        """
        path = self._path(entry)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._unreadable(path, entry) from error
        self._compare(path, entry, len(data), hashlib.sha256(data).hexdigest() if len(data) == entry["bytes"] else None)
        return data

    def _path(self, entry: Mapping[str, Any]) -> Path:
        name = entry["file"]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{self.path / MANIFEST} names a file outside the bundle: {name}")
        return self.path / name

    def _remedy(self, entry: Mapping[str, Any]) -> str:
        is_engine = Path(entry["file"]).parts[0] == "engines"
        return f"build it again: {self.build_command(entry)}" if is_engine else "export the bundle again"

    def _unreadable(self, path: Path, entry: Mapping[str, Any]) -> BundleError:
        return BundleError(f"{path} cannot be read; the bundle is incomplete: {self._remedy(entry)}")

    def _compare(self, path: Path, entry: Mapping[str, Any], size: int, sha256: str | None) -> None:
        if sha256 != entry["sha256"]:
            what = f"has {size} bytes instead of {entry['bytes']}" if sha256 is None else "has changed since it was written"
            raise BundleError(f"{path} {what}; {self._remedy(entry)}")

    def build_command(self, record: Mapping[str, Any], *, shapes: Sequence[Size] = (), tile: Size | None = None) -> str:
        """The command that builds the engine of ``record`` again: its part, sizes, batch and options.

        With ``shapes``, and ``tile`` for trunks in windows: all engines that images of these sizes need, with its batch and options.
        Of a record that cannot be read, a pattern with WxH in place of the sizes.
        """
        command = ["mgvq-export", "build", str(self.path)]
        precision = ["--precision", str(record["precision"])] if "precision" in record else []
        try:
            part, held = Part(record["part"]), engine_sizes(self.spec, record)
            if not shapes:
                command += ["--part", str(part)]
                # A trunk of one size is the same engine whether it was built for windows or for images of that size.
                tile = held[0][0] if part in TRUNKS and len(held) == 1 else None
                shapes = [] if tile else [size for size, _ in held]
            command += _build_options(record["options"], max(batch for _, batch in held))
        except (LookupError, TypeError, ValueError):  # the record of another release, or a damaged one
            return shlex.join([*command[:3], *precision, "--size", "WxH"])
        command += precision
        for height, width in shapes:
            command += ["--size", f"{width}x{height}"]
        if tile:
            command += ["--tile", f"{tile[1]}x{tile[0]}"]
        return shlex.join(command)

    def check_all(self) -> None:
        """Compare every file with its hash. Raises :class:`BundleError` on the first that differs."""
        for precision, entry in self.manifest["precisions"].items():
            for part in entry["graphs"]:
                self.graph_path(precision, Part(part))
            self.plan(precision)
        for engine in self.engines:
            self.check_file(engine)

    def write_manifest(self) -> None:
        """Replace ``manifest.json`` by :attr:`manifest`, whole."""
        atomic_write_bytes(self.path / MANIFEST, manifest_bytes(self.manifest))


def stride(spec: ModelSpec, value: str) -> int:
    """Image pixels per pixel of a value's map, along each axis."""
    strides = {"image": 1, "inner_features": 2 ** (spec.inner_stage or 0), "features": spec.trunk_stride}
    return strides.get(value, spec.downsample)


def engine_sizes(spec: ModelSpec, record: Mapping[str, Any]) -> list[tuple[Size, int]]:
    """The sizes (height, width) an engine holds, in image pixels, each with the largest batch: those of its profiles."""
    found = []
    for profile in record["profiles"]:
        ((value, shapes),) = profile.items()  # every part has one input whose shape varies
        first, scale = (1 if value == "image" else 2), stride(spec, value)
        height, width = shapes["max"][first : first + 2]
        found.append(((height * scale, width * scale), shapes["max"][0]))
    return found


def _build_options(options: Mapping[str, Any], batch: int) -> list[str]:
    """Options of the build command, by the manifest's; those that it has by default are left out."""
    words = [f"--{name.replace('_', '-')}" for name in _BUILD_FLAGS if options[name]]
    if options["workspace_bytes"] is not None:
        words += ["--workspace", str(options["workspace_bytes"])]
    if options["builder_level"] != 3:
        words += ["--builder-level", str(options["builder_level"])]
    if batch != 1:
        words += ["--batch", str(batch)]
    return words


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as it is written: JSON, two spaces, a final newline."""
    return (json.dumps(manifest, indent=2) + "\n").encode()


def file_entry(root: Path, name: str) -> dict[str, Any]:
    """The manifest entry of the file ``name`` in folder ``root``: its path, size and hash."""
    path = root / name
    return {"file": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
