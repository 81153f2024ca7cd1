"""Train the embedded model's video autoencoder on rendered scenes, whole clips at a time.

The shipped weights took two runs on one H200: `--minutes 8.3 --clips 24 --lr 1.5e-3 --kl 3e-5 --keep-easy 1 --decay-from
0.5 --seed 0`, then `--minutes 8.9 --resume` of the first with the defaults below. The first run had batches three times as
large and a slower step: 1,420 updates were too few (28.6 dB; 22.2 dB on noise). The second made 5,260 (34.0 dB; 28.4 dB).
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .render import pack, render, render_packed
from .scenes import BACKGROUNDS, Scene, held_out_scenes, training_scenes
from .vae import BASE_DIM, DECODER_BASE_DIM, NormSilu, build, channels_last, compiled_norm_silu, decode, encode, norm_silu

#: (frames, side, share of the updates): the full clip, and what the reduced grids need
SHAPES = ((41, 144, 0.6), (17, 144, 0.2), (21, 80, 0.2))
FULL_CLIP = SHAPES[0][:2]
HARD = tuple(BACKGROUNDS.index(name) for name in ("noise", "bricks", "checker"))
WARMUP = 60
REPORT_EVERY = 100
WORKER_SEED_STRIDE = 7919  # keeps the workers' scene streams apart

Batch = tuple[int, int, Tensor]


def training_batches(seed: int, pixels: float, keep_easy: float) -> Iterator[Batch]:
    """(frames, side, scenes packed for the renderer), each batch of about `pixels`; easy backgrounds kept with that chance."""
    rng, scenes = random.Random(seed), training_scenes(seed)
    kept = (scene for scene in scenes if BACKGROUNDS.index(scene.background) in HARD or rng.random() < keep_easy)
    while True:
        frames, side, _ = rng.choices(SHAPES, [share for *_, share in SHAPES])[0]
        number = max(1, round(pixels / (frames * side * side)))
        yield frames, side, pack([next(kept) for _ in range(number)])


class _Batches(IterableDataset[Batch]):
    def __init__(self, seed: int, pixels: float, keep_easy: float) -> None:
        self.seed, self.pixels, self.keep_easy = seed, pixels, keep_easy

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        return training_batches(self.seed + WORKER_SEED_STRIDE * (worker.id if worker else 0), self.pixels, self.keep_easy)


def loss_of(video: Tensor, out: Tensor, mean: Tensor, logvar: Tensor, kl_weight: float) -> Tensor:
    """Square and absolute error, the square error of spatial differences, a faint pull of the latents to a unit normal."""
    error = out - video
    flat = error.square().mean() + 0.1 * error.abs().mean()
    edges = error.diff(dim=3).square().mean() + error.diff(dim=4).square().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return flat + 0.5 * edges + kl_weight * kl


def psnr(video: Tensor, out: Tensor) -> Tensor:
    """Decibels [B] for videos [B, 3, F, H, W] in [-1, 1]."""
    return -10 * (((out.clamp(-1, 1) - video) / 2).square().flatten(1).mean(1)).log10()


def freeze_encoder(vae: AutoencoderKLWan) -> None:
    """Latents stay as they are: what a transformer was trained on remains valid while the decoder goes on learning."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)


@torch.no_grad()
def quality(
    vae: AutoencoderKLWan,
    scenes: Sequence[Scene],
    frames: int = FULL_CLIP[0],
    side: int = FULL_CLIP[1],
    batch: int = 8,
    act: NormSilu = norm_silu,
) -> dict[str, Any]:
    """Median PSNR for each background, over all but noise, and the latents' mean and standard deviation by channel."""
    device, values, latents = next(vae.parameters()).device, [], []
    for start in range(0, len(scenes), batch):
        video = render(scenes[start : start + batch], frames, side, side, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            z = encode(vae, video, act)[0].float()
            out = decode(vae, z, act).float()
        latents.append(z)
        values += psnr(video, out).tolist()
    z = torch.cat(latents)
    return {
        "median_psnr_db": {name: _median(scenes, values, (name,)) for name in sorted({scene.background for scene in scenes})},
        "median_psnr_but_noise_db": _median(scenes, values, [name for name in BACKGROUNDS if name != "noise"]),
        "latents_mean": z.mean((0, 2, 3, 4)).tolist(),
        "latents_std": z.std((0, 2, 3, 4)).tolist(),
    }


def _median(scenes: Sequence[Scene], values: Sequence[float], backgrounds: Sequence[str]) -> float:
    chosen = [value for scene, value in zip(scenes, values, strict=True) if scene.background in backgrounds]
    return float(torch.tensor(chosen).median()) if chosen else math.nan


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, args.device
        self.vae = build(args.base_dim, args.decoder_base_dim)
        if args.resume:
            saved = torch.load(args.resume, map_location="cpu")["ema"]
            self.vae.load_state_dict({name: value.float() for name, value in saved.items()})
        self.vae.to(self.device)
        channels_last(self.vae)
        if args.freeze_encoder:
            freeze_encoder(self.vae)
        self.act = norm_silu if args.no_compile else compiled_norm_silu()
        self.weights = [weight for weight in self.vae.parameters() if weight.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        fused = self.device == "cuda"
        self.optimizer = torch.optim.AdamW(self.weights, args.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
        self.iteration = 0
        self.curve: list[dict[str, float]] = []

    def run(self, batches: Iterator[Batch], started: float) -> None:
        """Until the time is up; afterwards the autoencoder holds the weights' moving average."""
        seconds, full = 60 * self.args.minutes, []
        while (passed := time.time() - started) < seconds:
            rate = self._set_rate(passed / seconds)
            frames, side, packed = next(batches)
            video = render_packed(packed, frames, side, side, self.device)
            loss, out = self._step(video)
            if (frames, side) == FULL_CLIP:
                full.append(psnr(video, out).mean())
            if self.iteration % REPORT_EVERY == 0:
                self._report(passed, float(loss), float(torch.stack(full).mean()) if full else math.nan, rate)
                full = []
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.average)

    def _set_rate(self, part: float) -> float:
        """Warm-up, then flat, then falling linearly from ``decay_from`` of the time."""
        fall = min(1.0, max(0.01, (1 - part) / (1 - self.args.decay_from)))
        rate = self.args.lr * min(1, (self.iteration + 1) / WARMUP) * fall
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return float(rate)

    def _step(self, video: Tensor) -> tuple[Tensor, Tensor]:
        frozen = self.args.freeze_encoder
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            with torch.set_grad_enabled(not frozen):
                mean, logvar = (part.float() for part in encode(self.vae, video, self.act))
            z = mean if frozen else mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            out = decode(self.vae, z, self.act).float()
        loss = loss_of(video, out, mean, logvar, 0.0 if frozen else self.args.kl)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(self.weights, 1.0)):
            self.optimizer.step()
        keep = min(0.999, (1 + self.iteration) / (10 + self.iteration))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - keep)
        self.iteration += 1
        return loss.detach(), out.detach()

    def _report(self, passed_s: float, loss: float, psnr_db: float, rate: float) -> None:
        row = {"i": self.iteration, "s": round(passed_s, 1), "loss": loss, "psnr_db": psnr_db, "rate": rate}
        self.curve.append(row)
        print(json.dumps(row), flush=True)
        if not math.isfinite(loss):
            raise SystemExit(f"the loss is {loss} after {self.iteration} updates")

    def save(self, table: dict[str, Any]) -> None:
        """The weights as `vae.pt` (half precision) and the curve as `vae.json` in the output folder."""
        self.args.out.mkdir(parents=True, exist_ok=True)
        state = {name: value.half().cpu() for name, value in self.vae.state_dict().items()}
        torch.save({"ema": state, "table": table}, self.args.out / "vae.pt")
        record = {"curve": self.curve, "table": table, "iterations": self.iteration}
        (self.args.out / "vae.json").write_text(json.dumps(record, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for vae.pt and vae.json")
    parser.add_argument("--minutes", type=float, default=8.9, help="training time; evaluation comes on top")
    parser.add_argument("--resume", type=pathlib.Path, help="an earlier vae.pt")
    parser.add_argument("--freeze-encoder", action="store_true", help="train the decoder only")
    parser.add_argument("--clips", type=float, default=8, help="full clips whose pixels make a batch")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--kl", type=float, default=1e-4)
    parser.add_argument("--decay-from", type=float, default=0.35, help="share of the time after which the rate falls")
    parser.add_argument("--keep-easy", type=float, default=0.5, help="chance that a scene on an easy background is kept")
    parser.add_argument("--base-dim", type=int, default=BASE_DIM)
    parser.add_argument("--decoder-base-dim", type=int, default=DECODER_BASE_DIM)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--workers", type=int, default=8, help="processes that draw up scenes")
    parser.add_argument("--evaluate", type=int, default=200, help="number of held-out scenes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    args, started = parse(), time.time()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    pixels = args.clips * FULL_CLIP[0] * FULL_CLIP[1] ** 2
    source = _Batches(args.seed, pixels, args.keep_easy)
    batches = iter(DataLoader(source, batch_size=None, num_workers=args.workers))
    trainer = Trainer(args)
    trainer.run(batches, started)
    trainer.save({})  # the evaluation may be cut off
    table = quality(trainer.vae, held_out_scenes()[: args.evaluate], act=trainer.act)
    trainer.save(table)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
