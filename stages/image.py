"""First frames: reading and checking an image. How it is fitted to the video is the adapter's. Loads no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_16_BITS = 2**16 - 1


def read_image(path: str | Path) -> Image.Image:
    """The whole image as RGB, upright by its EXIF tag, transparency on white. Raises ValueError if it cannot be read."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return _rgb(upright)
    except FileNotFoundError as error:
        raise ValueError(f"image {str(path)!r} does not exist") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image {str(path)!r} is no image that can be read (PNG, JPEG, WebP and others can)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits a pixel, which Pillow would cut off at white. Raises ValueError for more."""
    whole = image.convert("I")
    _, brightest = cast(tuple[int, int], whole.getextrema())
    if brightest > MAX_16_BITS:
        raise ValueError("its pixels have 32 bits; save it with 8 or 16")
    return whole.point(lambda value: value * (255 / MAX_16_BITS)).convert("L")


def image_sha256(path: str | Path) -> str:
    """Hash of the file. Raises ValueError if the image cannot be read."""
    read_image(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def require_unchanged(image: str, sha256: str) -> None:
    """Raises ValueError unless the file has the bytes that an item's key stands for."""
    try:
        found = hashlib.sha256(Path(image).read_bytes()).hexdigest()
    except OSError as problem:
        raise ValueError(f"image {image!r} cannot be read: {problem.strerror}") from problem
    if found != sha256:
        raise ValueError(f"image {image!r} has changed since its item was made: its SHA-256 is {found}, not {sha256}")
