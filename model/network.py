"""The MGVQ network: encoder, grouped vector quantizer, decoder, and the parts that graphs are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgvq_export.core.spec import ModelSpec, Part
from mgvq_export.model.layers import (
    ConvLayer,
    ConvPixelShuffle,
    ConvPixelUnshuffle,
    DownBlock,
    EViTBlock,
    ProjectFromLatent,
    ProjectToLatent,
    ResBlock,
    RMSNorm2d,
    Stage,
    UpBlock,
)

_CHUNK = 4096  # latent positions scored at once: bounds the score matrix to _CHUNK x K per group


class Encoder(nn.Module):
    """Image [B, 3, H, W] in [-1, 1] -> latent before ``quant_conv``, [B, latent_channels, H/f, W/f]."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        width = spec.widths[spec.first_stage]
        self.project_in = ConvPixelUnshuffle(3, width) if spec.first_stage else ConvLayer(3, width)
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(spec.encoder_depths):
            blocks = [_block(spec.blocks[stage], spec.widths[stage], "rms", "silu") for _ in range(depth)]
            if depth and stage + 1 < len(spec.widths):
                blocks.append(DownBlock(spec.widths[stage], spec.widths[stage + 1]))
            self.stages.append(Stage(*blocks))
        self.project_out = ProjectToLatent(spec.widths[-1], spec.latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        x = self.project_in(image)
        for stage in self.stages:
            x = stage(x)
        return self.project_out(x)


class Decoder(nn.Module):
    """Quantized latent after ``post_quant_conv`` -> image [B, 3, H, W], not clipped."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.project_in = ProjectFromLatent(spec.latent_channels, spec.widths[-1])
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(spec.decoder_depths):
            width = spec.widths[stage]
            blocks = [_block(spec.blocks[stage], width, "batch", "relu") for _ in range(depth)]
            if depth and stage + 1 < len(spec.widths):
                blocks.insert(0, UpBlock(spec.widths[stage + 1], width))
            self.stages.append(Stage(*blocks))
        width = spec.widths[spec.first_stage]
        last = ConvPixelShuffle(width, 3) if spec.first_stage else ConvLayer(width, 3)
        self.project_out = Stage(RMSNorm2d(width), nn.ReLU(), last)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.project_in(latent)
        for stage in reversed(self.stages):
            x = stage(x)
        return self.project_out(x)


def _block(kind: str, width: int, norm: str, act: str) -> nn.Module:
    return EViTBlock(width) if kind == "evit" else ResBlock(width, norm, act)


class Quantizer(nn.Module):
    """Nearest codebook row per group by cosine: the rows and the latent groups are unit vectors."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.groups, self.codes_per_group, self.group_dim = spec.groups, spec.codes_per_group, spec.group_dim
        self.embedding = nn.Embedding(spec.codebook_size, spec.group_dim)
        # Training statistics: loaded so that checkpoints match strictly, unused at inference.
        self.register_buffer("codebook_used", torch.zeros(spec.groups, 65536))
        self.register_buffer("embed_prob", torch.zeros(spec.groups, spec.codes_per_group))

    def codebook(self) -> Tensor:
        """Unit rows, float32 [G, K, d]."""
        rows = F.normalize(self.embedding.weight.float(), dim=1)
        return rows.view(self.groups, self.codes_per_group, self.group_dim)

    def scores(self, latent: Tensor) -> Tensor:
        """Inner products of latent float [P, G*d] with all rows: float32 [G, P, K]."""
        return latent.float().unflatten(1, (self.groups, self.group_dim)).transpose(0, 1) @ self.codebook().transpose(1, 2)

    def encode(self, latent: Tensor) -> Tensor:
        """latent [B, G*d, h, w] -> codes int32 [B, G, h, w]."""
        batch, _, height, width = latent.shape
        positions = latent.permute(0, 2, 3, 1).reshape(-1, self.groups * self.group_dim)
        codes = torch.cat([self.scores(chunk).argmax(dim=2) for chunk in positions.split(_CHUNK)], dim=1)
        return codes.view(self.groups, batch, height, width).transpose(0, 1).int()

    def decode(self, codes: Tensor, groups: int | None = None) -> Tensor:
        """codes int [B, G, h, w] -> quantized [B, G*d, h, w] with the groups from ``groups`` on set to zero."""
        batch, _, height, width = codes.shape
        group = torch.arange(self.groups, device=codes.device)[None, :, None, None]
        rows = self.codebook()[group, codes.long()]  # [B, G, h, w, d]
        if groups is not None:
            rows = rows * (group < groups)[..., None]
        return rows.permute(0, 1, 4, 2, 3).reshape(batch, -1, height, width).to(self.embedding.weight.dtype)


class MGVQ(nn.Module):
    """A trained MGVQ tokenizer, for inference, in evaluation mode.

    The names of its tensors are those of the released checkpoints.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.quant_conv = nn.Conv2d(spec.latent_channels, spec.latent_channels, 1, groups=spec.groups)
        self.quantize = Quantizer(spec)
        self.post_quant_conv = nn.Conv2d(spec.latent_channels, spec.latent_channels, 1, groups=spec.groups)
        self.decoder = Decoder(spec)
        self.eval()

    def latent(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] in [-1, 1], H and W multiples of f -> latent [B, G*d, H/f, W/f]."""
        return self.quant_conv(self.encoder(image))

    def encode(self, image: Tensor) -> Tensor:
        """Image [B, 3, H, W] in [-1, 1] -> codes int32 [B, G, H/f, W/f]."""
        return self.quantize.encode(self.latent(image))

    def decode(self, codes: Tensor, groups: int | None = None) -> Tensor:
        """Codes int [B, G, h, w] -> image [B, 3, h*f, w*f], not clipped; ``groups``: how many to use, all if None."""
        return self.reconstruct(self.quantize.decode(codes, groups))

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Quantized latent [B, G*d, h, w] -> image [B, 3, h*f, w*f], not clipped."""
        return self.decoder(self.post_quant_conv(quantized))

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(self.encode(image))

    def part(self, part: Part) -> nn.Sequential:
        """The layers of one convolutional graph, in order: any encoder or decoder :class:`Part`.

        Raises KeyError for the quantizer and dequantizer, and for the inner cut of a trunk that has none.
        """
        return nn.Sequential(*self._layers()[part])

    def _layers(self) -> dict[Part, list[nn.Module]]:
        spec, encoder, decoder = self.spec, self.encoder, self.decoder
        first, head = spec.first_stage, spec.head_stage
        down = [*encoder.stages[first:head]]
        up = [*reversed(decoder.stages[first:head])]
        encoder_head = [*encoder.stages[head:], encoder.project_out, self.quant_conv]
        decoder_head = [self.post_quant_conv, decoder.project_in, *reversed(decoder.stages[head:])]
        parts = {
            Part.ENCODER_TRUNK: [encoder.project_in, *down],
            Part.ENCODER_HEAD: encoder_head,
            Part.ENCODER: [encoder.project_in, *down, *encoder_head],
            Part.DECODER_HEAD: decoder_head,
            Part.DECODER_TRUNK: [*up, decoder.project_out],
            Part.DECODER: [*decoder_head, *up, decoder.project_out],
        }
        if spec.inner_stage is not None:
            parts |= {
                Part.ENCODER_TRUNK_FINE: [encoder.project_in, down[0]],
                Part.ENCODER_TRUNK_COARSE: down[1:],
                Part.DECODER_TRUNK_COARSE: up[:-1],
                Part.DECODER_TRUNK_FINE: [up[-1], decoder.project_out],
            }
        return parts
