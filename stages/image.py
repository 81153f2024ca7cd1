"""First frames: reading and checking an image. How it is fitted to the video is the adapter's. Loads no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


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
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def image_sha256(path: str | Path) -> str:
    """Hash of the file. Raises ValueError if the image cannot be read."""
    read_image(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
