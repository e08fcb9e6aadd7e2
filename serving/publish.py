"""Publishing: a bundle becomes a model repository for Triton Inference Server.

::

    REPOSITORY/
      mgvq_encoder/ mgvq_quantizer/ mgvq_decoder/ ...   config.pbtxt, and <version>/model.py or model.plan
      mgvq_encode/ mgvq_decode/ ...                     ensembles of these: config.pbtxt, and an empty <version>/
      mgvq_encoder/<version>/bundle/                    triton-python: the only copy of the weights, which all its models read

The folder can be moved. Files in it are copies, never links to the bundle's: servers keep them mapped, so an export that
overwrote a linked file would change a running server. Triton takes every folder in the repository for a model, so the shared one
lies inside a model's.

Formats: the server's user guide ("Model Configuration", "Model Repository") and ``model_config.proto``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mgvq_export.core.bundle import Bundle
from mgvq_export.core.files import PathLike, atomic_folder
from mgvq_export.serving import python_target, tensorrt_target
from mgvq_export.serving.options import PublishOptions


def publish(bundle: Bundle, path: PathLike, options: PublishOptions | None = None, *, replace: bool = False) -> list[Path]:
    """Write the model repository to the folder ``path``, whole or not at all; the models' folders in it.

    Args:
        replace: replace an existing folder; a running server goes on with the old files until it is told to load the new ones.

    Raises:
        InputError: the options contradict the bundle's engines, or the folder exists or cannot be written.
        BundleError: the bundle lacks the precision or an engine, or a file of it has changed.
        BackendError: no backend of that name.
    """
    options = options or PublishOptions()
    target = tensorrt_target if options.target == "triton-tensorrt" else python_target
    models = target.plan_models(bundle, options)
    with atomic_folder(path, replace=replace) as folder:
        for model in models:
            root = folder / model.config.name
            (root / str(options.version)).mkdir(parents=True)
            (root / "config.pbtxt").write_text(model.config.text, encoding="ascii")
            for name, source in model.files.items():
                file = root / name
                file.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(source, bytes):
                    file.write_bytes(source)
                else:
                    shutil.copyfile(source, file)
    return [Path(path) / model.config.name for model in models]
