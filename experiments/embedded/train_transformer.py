"""Train the embedded model's transformer and text encoder together: rectified flow on the frozen autoencoder's latents.

Grids of many sizes, a tenth of the captions empty (so that guidance works), words dropped now and then (so that unknown
words do no harm). Resumable: ``--resume`` takes an earlier call's folder.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import pathlib
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from PIL import Image
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from experiments.embedded import text, transformer
from experiments.embedded import vae as autoencoder
from experiments.embedded.captions import caption
from experiments.embedded.crossing import cross, crossing_of
from experiments.embedded.judging import first_frames, judge, medians, shares
from experiments.embedded.latents import FULL, LatentStore, num_cells
from experiments.embedded.sampling import GUIDANCE, SHIFT, Sampler, contact_sheet
from experiments.embedded.scenes import held_out_scenes

UNKNOWN = 2
EMPTY_SHARE, DROPPED_WORDS = 0.10, 0.02
IMAGE_SHARE, GUIDED_SHARE = 0.35, 0.5
CROSSING_WEIGHT = 0.5
"""Its velocities are longer, and partly beyond knowing: at full weight a seventh of the batches would be most of the gradient."""
WARMUP = 200
FIRST_FRAME_WEIGHT = 2.0
"""The first latent frame holds one picture where the others hold four: alone in its kind, it learns the slowest."""


class Embedded(nn.Module):
    """The two trained parts as one module, so that one optimiser and one average serve both."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.text_encoder = text.build_encoder(num_words)
        self.transformer = transformer.build()


def noise_levels(number: int, device: str) -> Tensor:
    """Logit-normal times under the timestep shift (SD3, Esser et al. 2024), one in ten uniform instead."""
    u = torch.sigmoid(torch.randn(number, device=device))
    u = torch.where(torch.rand(number, device=device) < 0.1, torch.rand(number, device=device), u)
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def degrade(ids: Tensor) -> Tensor:
    """Some words unknown, some captions empty."""
    words = ids > UNKNOWN
    ids = torch.where(words & (torch.rand(ids.shape, device=ids.device) < DROPPED_WORDS), UNKNOWN, ids)
    empty = torch.zeros_like(ids[0])
    empty[0] = 1
    return torch.where(torch.rand(len(ids), 1, device=ids.device) < EMPTY_SHARE, empty, ids)


def loss_of(
    model: Embedded, latents: Sequence[Tensor], ids: Tensor, device: str, block: transformer.Block, crossing: int | None = None
) -> Tensor:
    """Mean squared error of the velocity; a share of the clips have their first frame given, at level 0.

    With two grids' ``latents``, the transition ``crossing`` from the first to the second lies behind the clip.
    """
    target, number = latents[-1], len(ids)
    given = torch.rand(number, device=device) < IMAGE_SHARE
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        rows, bias = text.encode(model.text_encoder, degrade(ids))
        if crossing is None:
            noise, sigma = torch.randn_like(target), noise_levels(number, device)
            level = sigma.view(-1, 1, 1, 1, 1)
            x, wanted = (1 - level) * target + level * noise, noise - target
        else:
            estimate = partial(clean_estimate, model, latents[0], given, rows.detach(), bias)
            x, sigma, wanted = cross(latents[0], target, crossing, estimate)
        v = transformer.velocity(model.transformer, give(x, target, given), sigma, rows, bias, block, sigma * ~given)
    error = (v.float() - wanted).square().mean((1, 3, 4))
    first = torch.where(given, 0.0, FIRST_FRAME_WEIGHT)[:, None] * error[:, :1]
    return torch.cat([first, error[:, 1:]], 1).mean() * (1.0 if crossing is None else CROSSING_WEIGHT)


def give(x: Tensor, clean: Tensor, given: Tensor) -> Tensor:
    """``x`` with the first frame of ``clean`` in those clips that have it ``given``."""
    return torch.cat([torch.where(given.view(-1, 1, 1, 1, 1), clean[:, :, :1], x[:, :, :1]), x[:, :, 1:]], 2)


@torch.no_grad()
def clean_estimate(model: Embedded, clean: Tensor, given: Tensor, rows: Tensor, bias: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """One-step extrapolation to level 0, half of the time with guidance, as a sketch's last step makes it."""
    x = give(x, clean, given)
    v = transformer.velocity(model.transformer, x, sigma, rows, bias, first_sigma=sigma * ~given).float()
    if random.random() < GUIDED_SHARE:
        empty = torch.zeros(1, text.MAX_WORDS, dtype=torch.long, device=x.device)
        empty[0, 0] = 1
        nothing = [part.expand(len(x), *part.shape[1:]) for part in text.encode(model.text_encoder, empty)]
        plain = transformer.velocity(model.transformer, x, sigma, *nothing, first_sigma=sigma * ~given).float()
        v = plain + GUIDANCE * (v - plain)
    return give(x - sigma.view(-1, 1, 1, 1, 1) * v, clean, given)


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, args.device
        torch.manual_seed(args.seed)
        random.seed(args.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.tokenizer = text.build_tokenizer()
        self.vae, self.mean, self.std = load_vae(args.vae, args.device)
        self.model = Embedded(len(self.tokenizer)).to(args.device)
        if args.start:
            load_folder(self.model, args.start)
        self.average = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=args.device == "cuda"
        )
        self.iteration = self.first_iteration = 0
        self.curve: list[dict[str, float]] = []
        if args.resume:
            self._resume(args.resume)
        seed = args.seed + 7919 * (self.iteration + 1)
        self.store = LatentStore(self.vae, self.tokenizer, self.mean, self.std, args.device, seed, args.capacity)
        self.block = transformer.run_block if args.no_compile else torch.compile(transformer.run_block, dynamic=True)

    def run(self, started: float) -> None:
        end = started + 60 * self.args.minutes
        for grids in self.store.rings:
            self.store.refresh(grids)
        while self.store.encode_s < self.args.fill_s:
            self.store.refresh()
        print(f"filled: {self.store.num_encoded} clips in {self.store.encode_s:.1f} s", flush=True)
        train_started, encode_before = time.time(), self.store.encode_s
        losses: list[Tensor] = []
        while (now := time.time()) < end:
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate((now - started) / (end - started))
            losses.append(self._step())
            if self.iteration % 100 == 0 or self.iteration == 5:
                self._tell(losses, train_started)
                losses = []
            if self.store.encode_s - encode_before < self.args.encode_share * (now - train_started):
                self.store.refresh()

    def _rate(self, part: float) -> float:
        """Flat after a warm-up, then falling linearly over the last ``decay`` of this call."""
        fall = min(1.0, (1 - part) / self.args.decay) if self.args.decay else 1.0
        return self.args.lr * min(1, (self.iteration - self.first_iteration + 1) / WARMUP) * max(0.01, fall)

    def _step(self) -> Tensor:
        grids = self.store.pick()
        batch = max(1, min(self.args.max_batch, self.args.tokens // (num_cells(grids[-1]) // 4)))
        crossing = crossing_of(grids) if len(grids) > 1 else None
        loss = loss_of(self.model, *self.store.draw(grids, batch), self.device, self.block, crossing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        keep = min(self.args.ema, (1 + self.iteration) / (10 + self.iteration))
        names = list(self.average)
        state = self.model.state_dict()
        torch._foreach_lerp_([self.average[n] for n in names], [state[n] for n in names], 1 - keep)
        return loss.detach()

    def _tell(self, losses: list[Tensor], train_started: float) -> None:
        mean = float(torch.stack(losses).mean())
        row = {"i": self.iteration, "s": round(time.time() - train_started, 1), "loss": mean, "clips": self.store.num_encoded}
        self.curve.append(row)
        print(json.dumps(row), flush=True)
        if not math.isfinite(mean):
            raise SystemExit("the loss is not finite")

    def _resume(self, folder: pathlib.Path) -> None:
        raw = torch.load(folder / "raw.pt", map_location=self.device)
        self.model.load_state_dict({key: value.float() for key, value in raw["model"].items()})
        ema = torch.load(folder / "ema.pt", map_location=self.device)["model"]
        self.average = {key: value.float() for key, value in ema.items()}
        self.iteration = self.first_iteration = raw["iteration"]
        self.curve = raw["curve"]
        if (folder / "moments1.pt").is_file():  # without them the optimiser starts anew, behind the warm-up
            self._resume_moments([torch.load(folder / f"moments{i}.pt", map_location=self.device) for i in (0, 1)])

    def _resume_moments(self, moments: list[list[Tensor]]) -> None:
        for index, parameter in enumerate(self.model.parameters()):
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.iteration), device=self.device),
                "exp_avg": moments[0][index].float(),
                "exp_avg_sq": moments[1][index].float(),
            }

    def save(self, folder: pathlib.Path) -> None:
        """Five files of at most 13 MB: weights, average and moments in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        half = {key: value.half().cpu() for key, value in self.model.state_dict().items()}
        torch.save({"model": half, "iteration": self.iteration, "curve": self.curve}, folder / "raw.pt")
        torch.save({"model": {key: value.half().cpu() for key, value in self.average.items()}}, folder / "ema.pt")
        for index, name in enumerate(("exp_avg", "exp_avg_sq")):
            moments = [self.optimizer.state[p][name].to(torch.bfloat16).cpu() for p in self.model.parameters()]
            torch.save(moments, folder / f"moments{index}.pt")

    def sampler(self) -> Sampler:
        self.model.load_state_dict(self.average)
        model = self.model.eval()
        return Sampler(self.vae, model.transformer, model.text_encoder, self.tokenizer, self.mean, self.std, self.device)


def load_folder(model: Embedded, folder: pathlib.Path) -> None:
    """The weights of an exported folder, to go on from."""
    model.text_encoder.load_state_dict(
        UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).state_dict()
    )
    trained = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    model.transformer.load_state_dict(trained.state_dict())


def load_vae(path: pathlib.Path, device: str) -> tuple[Any, Tensor, Tensor]:
    """The frozen autoencoder of a checkpoint or of an exported folder, with its latents' mean and deviation."""
    if path.is_dir():
        vae = AutoencoderKLWan.from_pretrained(path / "vae", torch_dtype=torch.float32)
        table = {"latents_mean": vae.config.latents_mean, "latents_std": vae.config.latents_std}
    else:
        saved = torch.load(path, map_location="cpu")
        vae, table = autoencoder.build(), saved["table"]
        vae.load_state_dict({key: value.float() for key, value in saved["ema"].items()})
    autoencoder.channels_last(vae)
    vae.requires_grad_(False)
    return vae.to(device).eval(), torch.tensor(table["latents_mean"]), torch.tensor(table["latents_std"])


def evaluate(sampler: Sampler, number: int, guidance: float, with_image: bool, out: pathlib.Path, name: str) -> dict[str, Any]:
    """Share of held-out captions whose video shows each attribute; a contact sheet of the first sixteen.

    ``with_image`` gives each scene's first frame, and adds how near the video comes to the rendered scene.
    """
    scenes = held_out_scenes()[:number]
    videos = []
    for start in range(0, number, 50):
        part = scenes[start : start + 50]
        first = sampler.encode(first_frames(part)[:, :, None]) if with_image else None
        captions = [caption(scene) for scene in part]
        videos.append(sampler.videos(sampler.latents(captions, FULL, seed=start, guidance=guidance, first=first)))
    every = np.concatenate(videos)
    Image.fromarray(contact_sheet(every[:16, :, ::2, ::2])).save(out / f"{name}.png")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(12, number), context, torch.set_num_threads, (1,)) as pool:
        rows = list(pool.map(partial(judge, with_image=with_image), every, scenes, chunksize=4))
    return {**shares(rows, scenes), **medians(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--vae", type=pathlib.Path, required=True, help="checkpoint or exported folder")
    parser.add_argument("--resume", type=pathlib.Path, help="an earlier call's folder")
    parser.add_argument("--start", type=pathlib.Path, help="an exported folder whose weights to go on from")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=int, default=171_072, help="of one batch: 192 full-grid clips")
    parser.add_argument("--max-batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--decay", type=float, default=0.0, help="share of this call over which the rate falls")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--capacity", type=int, default=16_000, help="full-grid clips kept")
    parser.add_argument("--fill-s", type=float, default=45.0)
    parser.add_argument("--encode-share", type=float, default=0.25)
    parser.add_argument("--eval", type=int, default=100, help="held-out captions looked at afterwards")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args)
    trainer.run(started)
    trainer.save(args.out)
    sampler = trainer.sampler()
    table: dict[str, Any] = {"iteration": trainer.iteration, "s": time.time() - started}
    for kind in ("text", "image") if args.eval else ():
        table[kind] = evaluate(sampler, args.eval, GUIDANCE, kind == "image", args.out, f"sheet_{kind}")
        (args.out / "transformer.json").write_text(json.dumps({"table": table, "curve": trainer.curve}, indent=1))
        print(json.dumps(table, indent=1), flush=True)


if __name__ == "__main__":
    main()
