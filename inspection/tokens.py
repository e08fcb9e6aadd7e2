"""Describes a token file."""

from __future__ import annotations

from pathlib import Path

from mgvq_export.core.tables import Table
from mgvq_export.core.tokens import Tokens
from mgvq_export.inspection.facts import Facts


def describe_tokens(path: Path) -> Facts:
    """Model, image size and use of the codes of each group. Raises :class:`TokensError` when it is damaged."""
    tokens = Tokens.load(path)
    height, width = tokens.image_size
    pixels = height * width
    bits = tokens.codes.size * tokens.code_bits
    values = {
        "kind": "tokens",
        "model": tokens.model,
        "image": f"{width}x{height}",
        "codes": f"{tokens.groups} groups of {tokens.grid_size[1]}x{tokens.grid_size[0]}, each 0 to {tokens.codes_per_group - 1}",
        "bits per pixel": round(bits / pixels, 4),
        "codebook sha256": tokens.codebook_sha256,
        "bytes": path.stat().st_size,
    }
    rows = []
    for group, codes in enumerate(tokens.codes):
        rows.append([str(group + 1), str(len(set(codes.ravel().tolist()))), str(int(codes.min())), str(int(codes.max()))])
    return Facts(values, [Table(("group", "different codes", "smallest", "largest"), rows, "Groups, coarse to fine")])


def is_token_file(path: Path) -> bool:
    """Whether a safetensors file holds tokens, by its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return str((file.metadata() or {}).get("format", "")).startswith("mgvq-tokens")
    except (SafetensorError, OSError):
        return False
