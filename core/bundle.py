"""Bundles: a folder with a manifest, the ONNX graphs of one or more precisions, and TensorRT engines.

The only module that knows the names of files inside a bundle::

    manifest.json
    <precision>/<part>.onnx         one per Part
    <precision>/quantizer_inlined.onnx   the quantizer without model functions
    <precision>/weights.bin         the weights of all graphs of that precision
    <precision>/plan.json           the plan it was made by, if it is neither fp32 nor fp16
    engines/<gpu>-trt<version>/<precision>/*.engine
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mgvq_export.core.errors import BundleError, InputError, shown
from mgvq_export.core.files import PathLike, atomic_write_bytes, sha256_file
from mgvq_export.core.json_files import JsonSource, json_bytes, read_json, to_json
from mgvq_export.core.manifest import EngineRecord, FileEntry, GraphEntry, HashedFile, Manifest, PrecisionEntry, weights_name
from mgvq_export.core.precision_plan import PrecisionPlan
from mgvq_export.core.remedies import build_command
from mgvq_export.core.spec import ModelSpec, Part, ReceptiveField

MANIFEST = "manifest.json"


@dataclass
class Bundle:
    """An exported model on disk.

    ``open`` reads the manifest only; a file's hash is checked when its path is asked for, once.

    Attributes:
        path: the folder.
        manifest: its ``manifest.json``.
    """

    path: Path
    manifest: Manifest
    _checked: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, path: PathLike) -> Bundle:
        """The bundle in folder ``path``. Raises :class:`BundleError` when it is none, damaged, or of a newer version."""
        path = Path(path)
        return cls(path, Manifest.parse(_manifest_values(path), _source(path)))

    @property
    def spec(self) -> ModelSpec:
        """The network."""
        return self.manifest.spec

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions it holds, e.g. ``("fp32", "fp16")``."""
        return tuple(self.manifest.precisions)

    @property
    def codebook_sha256(self) -> str:
        """Hash of the codebook: tokens of equal hash are interchangeable."""
        return self.manifest.codebook_sha256

    @property
    def engines(self) -> tuple[EngineRecord, ...]:
        """Records of the TensorRT engines built so far."""
        return self.manifest.engines

    def reach(self, part: Part) -> ReceptiveField:
        """Strides and receptive field of a trunk part. Raises :class:`BundleError` for a part without one."""
        if part not in self.manifest.reach:
            raise BundleError(f"{self.path}: the graph {part} has no finite receptive field; only trunks can be tiled")
        return self.manifest.reach[part]

    def has_part(self, part: Part) -> bool:
        """Whether the network has this graph (small networks have no inner cut of the trunk)."""
        return all(part in entry.graphs for entry in self.manifest.precisions.values())

    def entry(self, precision: str) -> PrecisionEntry:
        """The manifest's entry of one precision. Raises :class:`BundleError` if absent."""
        if precision not in self.manifest.precisions:
            raise BundleError(
                f"{self.path} has no {shown(precision, quoted=False)} graphs; it has {', '.join(self.precisions)}: "
                f"choose one, or export again with --precision {shown(precision, quoted=False)}"
            )
        return self.manifest.precisions[precision]

    def graph(self, precision: str, part: Part) -> GraphEntry:
        """The manifest's entry of one graph. Raises :class:`BundleError` if absent."""
        graphs = self.entry(precision).graphs
        if part not in graphs:
            raise BundleError(f"{self.path} has no graph {part}; {self.spec.name} has {', '.join(graphs)}")
        return graphs[part]

    def run_sha256(self, precision: str, *, engines: bool) -> str:
        """Hash of all files that results depend on: weights and graphs of a precision, with ``engines`` those of it too."""
        entry = self.entry(precision)
        files = [entry.weights.sha256, *(graph.sha256 for graph in entry.graphs.values())]
        if engines:
            files += sorted(engine.sha256 for engine in self.engines if engine.precision == precision)
        return hashlib.sha256("".join(files).encode()).hexdigest()

    def plan(self, precision: str) -> PrecisionPlan | None:
        """The plan that a precision was made by; None for ``fp32`` and ``fp16`` as they are.

        Raises :class:`BundleError` when the bundle lacks the precision, or the plan's file is missing or has changed.
        """
        entry = self.entry(precision).plan
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
        self.check_file(self.entry(precision).weights)
        return self.check_file(entry)

    def check_file(self, entry: HashedFile) -> Path:
        """Path of the file in a manifest entry, after comparing its size and SHA-256. Raises :class:`BundleError`."""
        path = self._path(entry)
        if entry.file in self._checked:
            return path
        try:
            size = path.stat().st_size
            found = sha256_file(path) if size == entry.bytes else None
        except (OSError, InputError) as error:
            raise self._unreadable(path, entry) from error
        self._compare(path, entry, size, found)
        self._checked.add(entry.file)
        return path

    def read_file(self, entry: HashedFile) -> bytes:
        """The bytes of the file in a manifest entry, compared with its size and SHA-256. Raises :class:`BundleError`.

        What is returned is what was compared, even if the file changes meanwhile.
        """
        path = self._path(entry)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._unreadable(path, entry) from error
        self._compare(path, entry, len(data), hashlib.sha256(data).hexdigest() if len(data) == entry.bytes else None)
        return data

    def _path(self, entry: HashedFile) -> Path:
        name = Path(entry.file)
        if not name.parts or name.is_absolute() or ".." in name.parts:
            raise BundleError(f"{self.path / MANIFEST} names a file outside the bundle: {shown(entry.file)}")
        path = self.path / name
        if path.exists() and not path.is_file():  # reading a pipe or a device could wait for ever
            raise BundleError(f"{path} is no regular file; {self._remedy(entry)}")
        return path

    def _remedy(self, entry: HashedFile) -> str:
        if isinstance(entry, EngineRecord):
            return f"build it again: {build_command(self.path, self.spec, entry)}"
        return "export the bundle again"

    def _unreadable(self, path: Path, entry: HashedFile) -> BundleError:
        return BundleError(f"{path} cannot be read; the bundle is incomplete: {self._remedy(entry)}")

    def _compare(self, path: Path, entry: HashedFile, size: int, sha256: str | None) -> None:
        if sha256 != entry.sha256:
            what = f"has {size} bytes instead of {entry.bytes}" if sha256 is None else "has changed since it was written"
            raise BundleError(f"{path} {what}; {self._remedy(entry)}")

    def check_all(self) -> None:
        """Compare every file with its hash. Raises :class:`BundleError` on the first that differs."""
        for precision, entry in self.manifest.precisions.items():
            for file in entry.files:
                self.check_file(file)
            self.plan(precision)
        for engine in self.engines:
            self.check_file(engine)
        for weights in sorted(self.path.glob(weights_name("*"))):
            if weights.parent.name not in self.precisions:
                raise BundleError(
                    f"{self.path / MANIFEST} lacks the precision of the folder {weights.parent}; export the bundle again"
                )

    def add_engine(self, record: EngineRecord) -> None:
        """Put ``record`` in the manifest, in place of the one of the same file.

        The manifest is read again first: another build may have added engines meanwhile. Keys of other releases in it are kept.
        """
        values = _manifest_values(self.path)
        Manifest.parse(values, _source(self.path))
        assert isinstance(values, dict)  # parsing refuses anything else
        others = [entry for entry in values.get("engines", []) if entry.get("file") != record.file]
        values["engines"] = [*others, to_json(record)]
        self.manifest = Manifest.parse(values, _source(self.path))
        atomic_write_bytes(self.path / MANIFEST, json_bytes(values))


def _source(path: Path) -> JsonSource:
    return JsonSource(str(path / MANIFEST), "export the bundle again", BundleError)


def _manifest_values(path: Path) -> object:
    if not (path / MANIFEST).exists():
        what = "is not a bundle: it has no manifest.json" if path.is_dir() else "does not exist"
        raise BundleError(f"{path} {what}; make one with: mgvq-export export CHECKPOINT -o {path}")
    try:
        return read_json(path / MANIFEST, _source(path))
    except InputError as error:
        raise BundleError(f"{error}; export the bundle again") from error


def file_entry(root: Path, name: str) -> FileEntry:
    """The manifest entry of the file ``name`` in folder ``root``: its path, size and hash."""
    path = root / name
    return FileEntry(name, path.stat().st_size, sha256_file(path))


def package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
