"""Describes a checkpoint."""

from __future__ import annotations

from collections import Counter

from mgvq_export.core.errors import InputError
from mgvq_export.core.tables import Table
from mgvq_export.inspection.facts import Facts, model_rows


def describe_checkpoint(target: str) -> Facts:
    """A checkpoint by path, name or address. Raises :class:`CheckpointError`, or :class:`InputError` without PyTorch."""
    try:
        from mgvq_export.model.checkpoint import load_checkpoint
    except ImportError:
        raise InputError(f"inspecting the checkpoint {target} needs PyTorch: pip install 'mgvq-export[export]'") from None
    checkpoint = load_checkpoint(target)
    spec = checkpoint.spec
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values())
    values = {
        "kind": "checkpoint",
        **model_rows(spec),
        "tensors": len(checkpoint.tensors),
        "parameters": f"{parameters / 1e6:.2f} M",
        "dtypes": ", ".join(dtypes),
        "file": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "revision": checkpoint.revision or "-",
        "spec": spec.to_dict(),
    }
    rows = [
        [str(stage), str(2**stage), str(width), kind, str(down), str(up)]
        for stage, (width, kind, down, up) in enumerate(
            zip(spec.widths, spec.blocks, spec.encoder_depths, spec.decoder_depths, strict=True)
        )
    ]
    return Facts(values, [Table(("stage", "1/resolution", "width", "kind", "encoder", "decoder"), rows, "Stages")])
