"""Train the demo model on photographs that installed packages ship, and measure it on photos it never saw.

    pip install -e '.[export,test]'
    python tools/train_demo.py --minutes 17.5       # writes model/demo.safetensors
    python tools/train_demo.py --measure            # only prints the table of the weights written before

The packaged weights are from the first command, on two shared cores: about 5,300 steps. More minutes make a better model.

How it is trained (`Recipe` holds the numbers):

1. Without quantization: every group of the latent is a unit vector that goes straight to the decoder.
2. Spherical k-means on such vectors gives the codebooks; then training goes on through the quantizer. The gradient passes it
   by the rotation trick (arXiv 2410.06424), the rows follow their vectors as moving averages (arXiv 1711.00937),
   and rows that no vector chooses are put on a vector of the batch.
3. At the end BatchNorm keeps its running statistics, as in the exported network, and the learning rate falls to nearly zero.

Every image of a batch keeps only its first n groups (n drawn anew each time, often all), so that groups become
coarse to fine. The loss is the mean squared error divided by the usual error of that n, so that every n counts the same.
What is written is the moving average of the weights. The schedule ends after `--steps` steps or `--minutes`, whichever comes
first; with the same seed, threads and steps (and no time limit reached) the run repeats itself.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgvq_export.core.spec import ModelSpec
from mgvq_export.model.demo import DEMO_SPEC, DEMO_WEIGHTS, HELD_OUT_PHOTOS, SPEC_KEY, TRAINING_PHOTOS, photo_path
from mgvq_export.model.layers import ConvLayer
from mgvq_export.model.network import MGVQ


@dataclass(frozen=True)
class Recipe:
    """The numbers of the training. Fractions are of the whole schedule."""

    steps: int = 16000
    minutes: float = 75.0
    seed: int = 0
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    pixels_per_batch: int = 16 * 64 * 64
    crop_sides: tuple[int, ...] = (64, 96, 128, 192)  # attention sees the whole crop: it must not learn one size
    crop_shares: tuple[float, ...] = (0.6, 0.2, 0.15, 0.05)
    all_groups_share: float = 0.45
    commitment: float = 0.1
    plain_until: float = 0.06  # phase 1 ends here
    bfloat16_until: float = 0.75
    restart_until: float = 0.7  # unused rows are moved until here
    freeze_norm_from: float = 0.85  # phase 3 begins here
    codebook_decay: float = 0.995
    weight_average: float = 0.999


# ---- photographs


def load_pyramids() -> list[list[Tensor]]:
    """Every training photo at full, 0.71 and half size: uint8 [3, H, W]. Smaller sizes have finer detail per pixel."""
    pyramids = []
    for photo in TRAINING_PHOTOS:
        image = Image.open(photo_path(photo)).convert("RGB")
        sizes = [(round(image.width * scale), round(image.height * scale)) for scale in (1.0, 0.71, 0.5)]
        levels = [image.resize(size, Image.Resampling.LANCZOS) for size in sizes if min(size) >= 200]
        pyramids.append([torch.from_numpy(np.array(level)).permute(2, 0, 1).contiguous() for level in levels])
    return pyramids


class Crops:
    """Endless batches of augmented crops, float [B, 3, S, S] in [-1, 1]."""

    def __init__(self, recipe: Recipe, rng: torch.Generator):
        self.recipe, self.rng = recipe, rng
        self.pyramids = load_pyramids()
        self.photo_shares = torch.tensor(list(TRAINING_PHOTOS.values()))
        self.crop_shares = torch.tensor(recipe.crop_shares)

    def _choose(self, shares: Tensor) -> int:
        return int(torch.multinomial(shares, 1, generator=self.rng))

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=self.rng))

    def _crop(self, side: int) -> Tensor:
        levels = self.pyramids[self._choose(self.photo_shares)]
        photo = levels[self._below(len(levels))]
        top, left = self._below(photo.shape[1] - side + 1), self._below(photo.shape[2] - side + 1)
        crop = photo[:, top : top + side, left : left + side].rot90(self._below(4), (1, 2))
        return crop.flip(2) if self._below(2) else crop

    def batch(self) -> Tensor:
        side = self.recipe.crop_sides[self._choose(self.crop_shares)]
        count = max(2, self.recipe.pixels_per_batch // side**2)
        return self._recolour(torch.stack([self._crop(side) for _ in range(count)]).float() / 255) * 2 - 1

    def _recolour(self, x: Tensor) -> Tensor:
        """Half the crops keep their colours but for brightness and contrast; the others get new ones. [0, 1] -> [0, 1]."""
        count = len(x)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(count, *shape, generator=self.rng)

        order = torch.stack([torch.randperm(3, generator=self.rng) for _ in range(count)])
        permuted = x.gather(1, order[:, :, None, None].expand_as(x))
        grey = permuted.mean(1, keepdim=True)
        tinted = grey + (permuted - grey) * uniform(0.0, 1.6, 1, 1, 1)
        tinted = tinted * uniform(0.75, 1.25, 3, 1, 1)
        x = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, tinted, x).clamp(0, 1)
        x = x ** uniform(-0.4, 0.4, 1, 1, 1).exp()
        mean = x.mean((1, 2, 3), keepdim=True)
        x = (mean + (x - mean) * uniform(0.7, 1.3, 1, 1, 1)) * uniform(0.8, 1.2, 1, 1, 1)
        mixed = 0.5 * (x + x.flip(0))  # two photos on top of each other: content no single photo has
        return torch.where(uniform(0, 1, 1, 1, 1) < 0.08, mixed, x).clamp(0, 1)


# ---- quantizer in training


def rotate(vectors: Tensor, targets: Tensor) -> Tensor:
    """``targets`` in the forward pass; in the backward pass, the rotation from ``vectors`` to them. Unit vectors [..., d]."""
    e, q = vectors.detach(), targets.detach()
    r = F.normalize(e + q, dim=-1)
    along_r = (vectors * r).sum(-1, keepdim=True)
    along_e = (vectors * e).sum(-1, keepdim=True)
    return vectors - 2 * along_r * r + 2 * along_e * q


class TrainedQuantizer:
    """Chooses rows for unit vectors [G, P, d] and lets the rows follow them. Wraps the network's own codebook."""

    def __init__(self, network: MGVQ, recipe: Recipe, rng: torch.Generator):
        self.quantize, self.recipe, self.rng = network.quantize, recipe, rng
        network.quantize.embedding.weight.requires_grad_(False)
        rows = self.quantize.codebook()
        self.sums, self.counts = rows.clone(), torch.ones(rows.shape[:2])

    def nearest(self, vectors: Tensor) -> Tensor:
        with torch.no_grad():
            return (vectors @ self.quantize.codebook().transpose(1, 2)).argmax(dim=2)

    def look_up(self, codes: Tensor) -> Tensor:
        rows = self.quantize.codebook()
        return rows.gather(1, codes[..., None].expand(-1, -1, rows.shape[2]))

    def _gather(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.zeros_like(self.counts).scatter_add_(1, codes, torch.ones(codes.shape))
        sums = torch.zeros_like(self.sums).scatter_add_(1, codes[..., None].expand_as(vectors), vectors)
        return sums, counts

    def _store(self) -> None:
        rows = F.normalize(self.sums, dim=2)
        with torch.no_grad():
            self.quantize.embedding.weight.copy_(rows.flatten(0, 1))

    @torch.no_grad()
    def fit(self, vectors: Tensor, rounds: int = 12) -> None:
        """Spherical k-means, from rows chosen among ``vectors``."""
        codes_per_group = self.counts.shape[1]
        start = [group[torch.randperm(len(group), generator=self.rng)[:codes_per_group]] for group in vectors]
        self.sums, self.counts = torch.stack(start), torch.ones_like(self.counts)
        self._store()
        for _ in range(rounds):
            sums, counts = self._gather(vectors, self.nearest(vectors))
            empty = counts == 0
            self.sums = torch.where(empty[..., None], self.look_up(torch.arange(codes_per_group).expand_as(counts)), sums)
            self.counts = counts.clamp(min=1)
            self._store()
        scale = self.counts.mean()
        self.sums, self.counts = self.sums / scale, self.counts / scale

    @torch.no_grad()
    def follow(self, vectors: Tensor, codes: Tensor) -> None:
        """Moving averages of the vectors of every row."""
        sums, counts = self._gather(vectors, codes)
        self.sums.lerp_(sums, 1 - self.recipe.codebook_decay)
        self.counts.lerp_(counts, 1 - self.recipe.codebook_decay)
        self._store()

    @torch.no_grad()
    def restart_unused(self, vectors: Tensor) -> int:
        """Put rows that hardly any vector chooses on vectors of this batch. Returns how many."""
        average = self.counts.mean()
        group, row = (self.counts < 0.03 * average).nonzero(as_tuple=True)
        chosen = torch.randint(vectors.shape[1], (len(row),), generator=self.rng)
        self.sums[group, row] = vectors[group, chosen] * average
        self.counts[group, row] = average
        self._store()
        return len(row)


# ---- training


class Trainer:
    """The network in training, its moving average, and everything a checkpoint must hold."""

    def __init__(self, spec: ModelSpec, recipe: Recipe):
        torch.manual_seed(recipe.seed)
        self.spec, self.recipe = spec, recipe
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.crops = Crops(recipe, self.rng)
        self.network, self.average = MGVQ(spec), MGVQ(spec)
        self.quantizer = TrainedQuantizer(self.network, recipe, self.rng)
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        self.average.load_state_dict(self.network.state_dict())
        self.step, self.seconds, self.fitted = 0, 0.0, False
        self.usual_error = torch.full((spec.groups + 1,), 0.3)  # moving average of the squared error by groups kept

    @property
    def progress(self) -> float:
        return min(1.0, max(self.step / self.recipe.steps, self.seconds / (60 * self.recipe.minutes)))

    def state(self) -> dict[str, Any]:
        quantizer = self.quantizer
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rows": {"sums": quantizer.sums, "counts": quantizer.counts},
            "usual_error": self.usual_error,
            "rng": self.rng.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "fitted": self.fitted,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.quantizer.sums, self.quantizer.counts = state["rows"]["sums"], state["rows"]["counts"]
        self.usual_error = state["usual_error"]
        self.rng.set_state(state["rng"])
        self.step, self.seconds, self.fitted = state["step"], state["seconds"], state["fitted"]

    def _set_learning_rate(self) -> None:
        warmup = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * warmup * (0.003 + 0.997 * cosine)

    def _set_mode(self) -> None:
        self.network.train()
        if self.progress >= self.recipe.freeze_norm_from:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _unit_vectors(self, latent: Tensor) -> Tensor:
        """[B, G*d, h, w] -> unit vectors [G, B*h*w, d]."""
        split = latent.float().unflatten(1, (self.spec.groups, self.spec.group_dim))
        return F.normalize(split.permute(1, 0, 3, 4, 2).flatten(1, 3), dim=2)

    def _draw_groups(self, count: int) -> Tensor:
        """How many groups each image keeps, 1 to G."""
        groups = torch.randint(1, self.spec.groups + 1, (count,), generator=self.rng)
        keep_all = torch.rand(count, generator=self.rng) < self.recipe.all_groups_share
        return torch.where(keep_all, self.spec.groups, groups)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.progress < self.recipe.bfloat16_until)

    @torch.no_grad()
    def fit_codebooks(self, vectors_per_code: int = 16) -> None:
        """Phase 1 -> 2: k-means on the vectors of many batches."""
        self.network.eval()
        collected: list[Tensor] = []
        while sum(v.shape[1] for v in collected) < vectors_per_code * self.spec.codes_per_group:
            with self._autocast():
                latent = self.network.latent(self.crops.batch())
            collected.append(self._unit_vectors(latent))
        self.quantizer.fit(torch.cat(collected, dim=1))
        self.fitted = True

    def _through_quantizer(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors -> what the decoder gets, and the commitment loss."""
        if self.progress < self.recipe.plain_until:
            return vectors, vectors.new_zeros(())
        if not self.fitted:
            self.fit_codebooks()
            self._set_mode()
        codes = self.quantizer.nearest(vectors)
        rows = self.quantizer.look_up(codes)
        if self.progress < self.recipe.restart_until and self.step % 50 == 0:
            self.quantizer.restart_unused(vectors.detach())
        self.quantizer.follow(vectors.detach(), codes)
        return rotate(vectors, rows), (vectors - rows).square().sum(2).mean()

    def train_step(self) -> None:
        """One batch: forward, loss, backward, update, averages."""
        spec, recipe = self.spec, self.recipe
        self._set_learning_rate()
        self._set_mode()
        image = self.crops.batch()

        # Forward
        with self._autocast():
            latent = self.network.latent(image)
        batch, _, height, width = latent.shape
        rows, commitment = self._through_quantizer(self._unit_vectors(latent))
        kept = self._draw_groups(batch)
        mask = torch.arange(spec.groups)[None, :] < kept[:, None]
        rows = rows.unflatten(1, (batch, height, width)).permute(1, 0, 4, 2, 3) * mask[:, :, None, None, None]
        with self._autocast():
            output = self.network.reconstruct(rows.flatten(1, 2))

        # Loss. Lengths near 1 change no code; they keep the latent well inside float16.
        error = (output.float() - image).square().mean((1, 2, 3))
        lengths = latent.float().unflatten(1, (spec.groups, spec.group_dim)).norm(dim=2)
        loss = (error / self.usual_error[kept]).mean() + recipe.commitment * commitment + 0.01 * (lengths - 1).square().mean()

        # Update
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self._average(kept, error.detach())
        self.step += 1

    @torch.no_grad()
    def _average(self, kept: Tensor, error: Tensor) -> None:
        for groups in kept.unique():
            self.usual_error[groups].lerp_(error[kept == groups].mean(), 0.02)
        decay = min(self.recipe.weight_average, (1 + self.step) / (10 + self.step))
        current = self.network.state_dict()
        for name, mean in self.average.state_dict().items():
            if name.startswith("quantize.") or not mean.is_floating_point():
                mean.copy_(current[name])
            else:
                mean.lerp_(current[name], 1 - decay)


# ---- measuring and writing


def held_out_photo(photo: str) -> np.ndarray:
    """The photo as uint8 [H, W, 3], its middle cropped to multiples of f."""
    pixels = np.asarray(Image.open(photo_path(photo)).convert("RGB"))
    f = DEMO_SPEC.downsample
    height, width = (side // f * f for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


@torch.no_grad()
def psnr_by_groups(network: MGVQ, pixels: np.ndarray) -> list[float]:
    """PSNR in dB of the 8-bit reconstruction with the first 1, 2, ... G groups. pixels: uint8 [H, W, 3]."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    codes = network.encode(image)
    figures = []
    for groups in range(1, network.spec.groups + 1):
        output = ((network.decode(codes, groups).clamp(-1, 1) + 1) * 127.5).round()
        error = (output - (image + 1) * 127.5).square().mean()
        figures.append(round(10 * math.log10(255**2 / float(error)), 2))
    return figures


def measure(network: MGVQ) -> dict[str, list[float]]:
    """PSNR by groups of every held-out photo, by its name."""
    return {Path(photo).stem: psnr_by_groups(network, held_out_photo(photo)) for photo in HELD_OUT_PHOTOS}


def table(figures: dict[str, list[float]]) -> str:
    groups = range(1, DEMO_SPEC.groups + 1)
    lines = ["PSNR in dB".ljust(12) + "".join(f"{n:>7}" for n in groups) + "  groups"]
    lines += [name.ljust(12) + "".join(f"{value:7.2f}" for value in values) for name, values in figures.items()]
    return "\n".join(lines)


@torch.no_grad()
def rescale_norms(network: MGVQ) -> None:
    """Divide what enters every BatchNorm by its deviation: the outputs stay, and the variance, now 1, fits float16."""
    for module in network.modules():
        if isinstance(module, ConvLayer) and isinstance(module.norm, nn.BatchNorm2d):
            norm = module.norm
            assert norm.running_mean is not None and norm.running_var is not None
            scale = (norm.running_var + norm.eps).sqrt()
            module.conv.weight /= scale[:, None, None, None]
            norm.running_mean /= scale
            norm.running_var.fill_(1 - norm.eps)


def write_weights(trainer: Trainer, path: Path) -> MGVQ:
    """Write the averaged network as safetensors, its spec in the metadata; nothing half-written stays."""
    network = copy.deepcopy(trainer.average).eval()
    rescale_norms(network)
    counts = trainer.quantizer.counts
    network.quantize.embed_prob.copy_(counts / counts.sum(1, keepdim=True))
    metadata = {SPEC_KEY: json.dumps(trainer.spec.to_dict())}
    partial = path.with_name(path.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, partial, metadata=metadata)
    partial.chmod(0o644)  # safetensors makes files only their owner may read
    partial.replace(path)
    return network


def read_weights(path: Path) -> MGVQ:
    network = MGVQ(DEMO_SPEC)
    network.load_state_dict(load_file(path))
    return network.eval()


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    torch.save(trainer.state(), partial)
    partial.replace(path)


def train(trainer: Trainer, checkpoint: Path, output: Path) -> None:
    """Train to the end of the schedule; every two minutes, save a checkpoint and print the table."""
    last, last_save = time.monotonic(), trainer.seconds
    while trainer.progress < 1:
        trainer.train_step()
        now = time.monotonic()
        trainer.seconds += now - last
        last = now
        if trainer.step % 100 == 0:
            errors = " ".join(f"{10 * math.log10(4 / e):.1f}" for e in trainer.usual_error[1:].tolist())
            print(
                f"step {trainer.step}  {trainer.progress:6.1%}  {trainer.seconds:.0f} s  training PSNR by groups {errors}",
                flush=True,
            )
        if trainer.seconds - last_save > 120 or trainer.progress >= 1:
            last_save = trainer.seconds
            save_checkpoint(trainer, checkpoint)
            print(table(measure(trainer.average.eval())), flush=True)
    write_weights(trainer, output)


def main() -> None:
    recipe = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=DEMO_WEIGHTS, help="weights to write or measure (default: the packaged ones)"
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("train_demo.pt"), help="state of the training (default: ./train_demo.pt)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint if there is one")
    parser.add_argument(
        "--write-only", action="store_true", help="write the weights of the checkpoint as they are, without training"
    )
    parser.add_argument("--measure", action="store_true", help="only print the PSNR table of --output")
    parser.add_argument("--json", type=Path, help="also write the PSNR table to this file")
    parser.add_argument("--minutes", type=float, default=recipe.minutes, help="time limit of the training (default: %(default)g)")
    parser.add_argument("--steps", type=int, default=recipe.steps, help="steps of the training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="seed of the training (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training (default: %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    if not options.measure:
        recipe = dataclasses.replace(recipe, steps=options.steps, minutes=options.minutes, seed=options.seed)
        trainer = Trainer(DEMO_SPEC, recipe)
        if options.checkpoint.is_file() and (options.resume or options.write_only):
            trainer.load_state(torch.load(options.checkpoint, weights_only=True))
        elif options.write_only:
            parser.error(f"there is no checkpoint {options.checkpoint} to write weights from")
        if options.write_only:
            write_weights(trainer, options.output)
        else:
            train(trainer, options.checkpoint, options.output)
    figures = measure(read_weights(options.output))
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
