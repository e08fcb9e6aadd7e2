"""What running a network costs: memory, work and time, per pixel and per run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mgvq_export.core.spec import ModelSpec, Part
from mgvq_export.runtime.tiling.windows import TilePlan


@dataclass(frozen=True)
class Speed:
    """How fast graphs run. Only the ratios decide, so that one core's figures serve for any number of them.

    Attributes:
        work: multiplications of convolutions per second.
        copying: bytes per second, between maps and windows.
        run: seconds that a run takes beside its work.
    """

    work: float
    copying: float
    run: float


#: Maps held at the worst moment in a stage, measured with ONNX Runtime without its arena. Attention blocks: the gated convolution's
#: input, the same in the kernels' layout, the sum so far, and of one part of the hidden channels values, gates, and what is made of
#: them; a fifth more was measured. In the encoder, norms hold one map more, their input squared.
_MAPS = {"res": 3.5, "evit": 6.2}
_DECODER_MAPS = {"res": 3.0, "evit": 6.2}


@dataclass(frozen=True)
class CostModel:
    """What a backend's runs cost. The defaults are ONNX Runtime's on one core (AVX-512), where a window of 64 px runs at the speed of one of 512.

    Attributes:
        itemsize: bytes of one number in the maps.
        maps: maps held at the worst moment in a stage, by the kind of its blocks.
        decoder_maps: the same in the decoder; as in the encoder when None.
        reserve_bytes: taken by the first run at a size, whatever the size.
        speed: of its runs.
        batches: how many windows may run together.
        together: pixels of small images that run together; more gains nothing.
    """

    itemsize: int = 4
    maps: Mapping[str, float] = field(default_factory=lambda: _MAPS)
    decoder_maps: Mapping[str, float] | None = field(default_factory=lambda: _DECODER_MAPS)
    reserve_bytes: int = 0
    speed: Speed = Speed(5e10, 2e9, 2e-4)
    batches: tuple[int, ...] = (1,)
    together: int = 2**20


@dataclass(frozen=True)
class Costs:
    """What one image pixel costs in each stage of a network: bytes and multiplications."""

    spec: ModelSpec
    model: CostModel = field(default_factory=CostModel)

    def map_bytes(self, stage: int) -> float:
        """Bytes of a map of ``stage``, per image pixel."""
        return self.model.itemsize * self.spec.widths[stage] / (1 << 2 * stage)

    def stages(self, part: Part) -> range:
        """Stages whose blocks run in a trunk or head part."""
        first, head, inner = self.spec.first_stage, self.spec.head_stage, self.spec.inner_stage
        if part in (Part.ENCODER_HEAD, Part.DECODER_HEAD):
            return range(head, len(self.spec.widths))
        if part in (Part.ENCODER_TRUNK_FINE, Part.DECODER_TRUNK_FINE):
            return range(first, inner or head)
        if part in (Part.ENCODER_TRUNK_COARSE, Part.DECODER_TRUNK_COARSE):
            return range(inner or first, head)
        return range(first, head) or range(first, head + 1)

    def working_bytes(self, part: Part) -> float:
        """Peak bytes per image pixel inside ``part``, without its input."""
        maps = self.model.maps if str(part).startswith("encoder") else self.model.decoder_maps or self.model.maps
        return max(maps[self.spec.blocks[stage]] * self.map_bytes(stage) for stage in self.stages(part))

    def work(self, part: Part) -> float:
        """Multiplications per image pixel in the convolutions of a trunk part."""
        widths, encoder = self.spec.widths, str(part).startswith("encoder")
        depths = self.spec.encoder_depths if encoder else self.spec.decoder_depths
        stages = self.stages(part)
        total = 0.0
        for stage in stages:
            total += depths[stage] * 2 * 9 * widths[stage] ** 2 / 4**stage
            if stage + 1 < len(widths):  # the resolution change to or from the next stage
                total += 9 * widths[stage] * widths[stage + 1] / 4 ** (stage + 1) * (1 if encoder else 4)
        if self.spec.first_stage in stages:
            total += 9 * 3 * widths[self.spec.first_stage] / 4**self.spec.first_stage
        return total

    def overhead(self, steps: Iterable[tuple[Part, TilePlan]]) -> float:
        """The tiling overhead: work of all windows over work of one window, over all ``steps``."""
        works = [(self.work(part), plan.tiling_overhead) for part, plan in steps]
        return sum(work * each for work, each in works) / sum(work for work, _ in works)
