"""A small folder of images in every kind of source, and the packages that they need."""

import io
import json
import os
import tarfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgvq_export.core.bundle import Bundle


def need(module: str) -> None:
    """Skip without an optional package, or fail where the tests must have all."""
    try:
        import_module(module)
    except ImportError:
        if os.environ.get("MGVQ_REQUIRE_DATASET") == "1":
            raise
        pytest.skip(f"{module} is not installed: pip install 'mgvq-export[dataset]'", allow_module_level=True)


need("pyarrow")
need("webdataset")

COUNT = 12


def encoded(index: int) -> bytes:
    """A PNG of one of two sizes."""
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 256, (32 + 16 * (index % 2), 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path, count: int) -> None:
    """``count`` images in the folders of three classes."""
    for index in range(count):
        target = folder / f"class{index % 3}" / f"{index:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded(index))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "photos"
    write_images(folder, COUNT)
    return folder


@pytest.fixture(scope="session")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two webdataset tars with image, class and caption."""
    folder = tmp_path_factory.mktemp("tars")
    for number in range(2):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            for index in range(number * 6, number * 6 + 6):
                members = {"png": encoded(index), "cls": str(index % 3).encode(), "txt": f"image {index}".encode()}
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{index:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(scope="session")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Parquet files with the ``datasets`` library's image struct."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("parquet")
    for number in range(2):
        rows = range(number * 6, number * 6 + 6)
        table = pa.table(
            {
                "image": [{"bytes": encoded(index), "path": f"{index}.png"} for index in rows],
                "label": [index % 3 for index in rows],
                "caption": [f"image {index}" for index in rows],
            }
        )
        pq.write_table(table, folder / f"train-{number}.parquet", row_group_size=4)
    return folder


@pytest.fixture(scope="session")
def lists(images: Path) -> dict[str, Path]:
    """The folder as a text list, JSON lines and a JSON list."""
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    folder = images.parent
    (folder / "list.txt").write_text("".join(f"photos/{name}\n" for name in names))
    entries = [
        {"path": f"photos/{name}", "class": name.split("/")[0], "key": f"k{i}", "stars": i} for i, name in enumerate(names)
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "list.json").write_text(json.dumps({"source": [f"photos/{name}" for name in names]}))
    return {kind: folder / f"list.{kind}" for kind in ("txt", "jsonl", "json")}


@pytest.fixture(scope="session")
def expected(tiny_bundle: Bundle) -> dict[int, np.ndarray]:
    """The codes of each image, encoded one by one."""
    from mgvq_export.runtime.image_files import decode_image
    from mgvq_export.runtime.tokenizer import Tokenizer

    with Tokenizer.open(tiny_bundle, backend="ort-cpu") as tokenizer:
        return {index: tokenizer.encode(decode_image(encoded(index), "image")).codes for index in range(COUNT)}
