"""Building blocks of the MGVQ encoder and decoder.

The attribute names spell the released checkpoints' tensor names (``main.conv1.conv.weight`` and so on).
Every block maps float [B, C, H, W] to float [B, C', H', W'] in its weights' dtype; the norm statistics and the
attention run in float32 whatever that dtype is, because their sums overflow float16.

The blocks are those of DC-AE (arXiv 2410.10733) with the ReLU linear attention of EfficientViT (arXiv 2205.14756).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgvq_export.core.spec import EXPANSION, HEAD_DIM

NORM_EPS = 1e-5  # RMS norm and BatchNorm
ATTENTION_EPS = 1e-15  # far below float16's smallest number: one reason for the float32 island


class RMSNorm2d(nn.Module):
    """``x / sqrt(mean(x^2 over channels) + eps) * weight + bias`` at every pixel, in float32."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(dim=1, keepdim=True) + NORM_EPS)
        y = y * self.weight.float()[:, None, None] + self.bias.float()[:, None, None]
        return y.to(x.dtype)


def make_norm(kind: str | None, channels: int) -> nn.Module | None:
    """The norm called ``rms`` or ``batch``, or None."""
    if kind is None:
        return None
    return RMSNorm2d(channels) if kind == "rms" else nn.BatchNorm2d(channels, eps=NORM_EPS)


def make_activation(kind: str | None) -> nn.Module | None:
    """The activation called ``silu`` or ``relu``, or None."""
    if kind is None:
        return None
    return nn.SiLU() if kind == "silu" else nn.ReLU()


class ConvLayer(nn.Module):
    """Convolution with zero padding that keeps the size, then norm, then activation (both optional)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        groups: int = 1,
        bias: bool = True,
        norm: str | None = None,
        act: str | None = None,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=bias)
        self.norm = make_norm(norm, out_channels)
        self.act = make_activation(act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.act is None else self.act(x)


class ResBlock(nn.Module):
    """conv3x3 (bias) -> act -> conv3x3 (no bias) -> norm, plus identity."""

    def __init__(self, channels: int, norm: str, act: str):
        super().__init__()
        self.main = nn.ModuleDict(
            {
                "conv1": ConvLayer(channels, channels, act=act),
                "conv2": ConvLayer(channels, channels, bias=False, norm=norm),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main["conv2"](self.main["conv1"](x))


class LinearAttention(nn.Module):
    """ReLU linear attention over all pixels of the map, head size 32, in float32; then 1x1 conv and RMS norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.qkv = ConvLayer(channels, 3 * channels, 1, bias=False)
        self.proj = ConvLayer(channels, channels, 1, bias=False, norm="rms")
        self.heads = channels // HEAD_DIM

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        qkv = self.qkv(x).float().reshape(batch, self.heads, 3 * HEAD_DIM, height * width)
        q, k, v = qkv.split(HEAD_DIM, dim=2)  # the channels of one head lie together, as q, k, v
        q, k = q.relu(), k.relu()
        context = v @ k.transpose(2, 3)  # [B, heads, 32, 32]
        weight_sum = k.sum(dim=3, keepdim=True).transpose(2, 3) @ q  # [B, heads, 1, N]
        out = (context @ q) / (weight_sum + ATTENTION_EPS)
        return self.proj(out.reshape(batch, -1, height, width).to(x.dtype))


class GatedConv(nn.Module):
    """1x1 conv -> act -> depthwise 3x3 conv -> a * act(b) -> 1x1 conv -> RMS norm."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = EXPANSION * channels
        self.inverted_conv = ConvLayer(channels, 2 * hidden, 1, act="silu")
        self.depth_conv = ConvLayer(2 * hidden, 2 * hidden, groups=2 * hidden)
        self.point_conv = ConvLayer(hidden, channels, 1, bias=False, norm="rms")
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.depth_conv(self.inverted_conv(x)).chunk(2, dim=1)
        return self.point_conv(a * self.act(b))


class Shortcut(nn.Module):
    """``x + main(x)``."""

    def __init__(self, main: nn.Module):
        super().__init__()
        self.main = main

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class EViTBlock(nn.Module):
    """Linear attention, then gated convolution, each with an identity shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.context_module = Shortcut(LinearAttention(channels))
        self.local_module = Shortcut(GatedConv(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.local_module(self.context_module(x))


class ConvPixelUnshuffle(nn.Module):
    """conv3x3 to a quarter of the channels, then pixel-unshuffle by 2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvLayer(in_channels, out_channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.conv(x), 2)


class ConvPixelShuffle(nn.Module):
    """conv3x3 to four times the channels, then pixel-shuffle by 2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvLayer(in_channels, 4 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


def mean_channels(x: Tensor, size: int) -> Tensor:
    """Mean over consecutive groups of ``size`` channels: [B, C, H, W] -> [B, C / size, H, W]."""
    return x.unflatten(1, (-1, size)).mean(dim=2)


class DownBlock(nn.Module):
    """Halves the resolution: ``main`` plus the mean over channel groups of the unshuffled input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.main = ConvPixelUnshuffle(in_channels, out_channels)
        self.group_size = 4 * in_channels // out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + mean_channels(F.pixel_unshuffle(x, 2), self.group_size)


class UpBlock(nn.Module):
    """Doubles the resolution: ``main`` plus the shuffled input, every channel repeated."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.main = ConvPixelShuffle(in_channels, out_channels)
        self.repeats = 4 * out_channels // in_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + F.pixel_shuffle(x.repeat_interleave(self.repeats, dim=1), 2)


class Stage(nn.Module):
    """Blocks one after the other, under the name the checkpoints give them."""

    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.op_list = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.op_list:
            x = block(x)
        return x


class ProjectToLatent(nn.Module):
    """conv3x3 to the latent's channels plus the mean over consecutive channel groups."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.main = Stage(ConvLayer(in_channels, out_channels))
        self.group_size = in_channels // out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + mean_channels(x, self.group_size)


class ProjectFromLatent(nn.Module):
    """conv3x3 from the latent's channels plus every channel repeated."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.main = ConvLayer(in_channels, out_channels)
        self.repeats = out_channels // in_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + x.repeat_interleave(self.repeats, dim=1)
