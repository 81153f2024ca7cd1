"""Write the trained parts as a folder that the stock ``WanPipeline.from_pretrained`` loads: fp16 safetensors."""

from __future__ import annotations

import argparse
import pathlib
import shutil

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from experiments.embedded import text, transformer
from experiments.embedded import vae as autoencoder
from experiments.embedded.sampling import SHIFT
from stages.models.embedded import FOLDER

MAX_BYTES = 24_000_000


def build_pipeline(vae_file: pathlib.Path, model_file: pathlib.Path) -> WanPipeline:
    """The pipeline of an autoencoder's and a transformer's checkpoint, in half precision."""
    saved = torch.load(vae_file, map_location="cpu")
    vae = autoencoder.build()
    vae.load_state_dict({key: value.float() for key, value in saved["ema"].items()})
    vae.register_to_config(latents_mean=saved["table"]["latents_mean"], latents_std=saved["table"]["latents_std"])
    weights = torch.load(model_file, map_location="cpu")["model"]
    tokenizer = text.build_tokenizer()
    encoder, denoiser = text.build_encoder(len(tokenizer)), transformer.build()
    for part, prefix in ((encoder, "text_encoder."), (denoiser, "transformer.")):
        part.load_state_dict({k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)})
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.half(),
        vae=vae.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=denoiser.half(),
        expand_timesteps=True,  # a first frame may be given, clean at timestep 0
    )


def export(vae_file: pathlib.Path, model_file: pathlib.Path, folder: pathlib.Path) -> int:
    """Replace ``folder``; its size in bytes. Raises RuntimeError when it is larger than the repository may hold."""
    draft = folder.with_name(folder.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    build_pipeline(vae_file, model_file).save_pretrained(draft, safe_serialization=True)
    size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise RuntimeError(f"the folder has {size:,} bytes, {MAX_BYTES:,} are allowed")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=pathlib.Path, required=True)
    parser.add_argument("--transformer", type=pathlib.Path, required=True, help="ema.pt of train_transformer")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    args = parser.parse_args()
    print(f"{export(args.vae, args.transformer, args.folder):,} bytes in {args.folder}")


if __name__ == "__main__":
    main()
