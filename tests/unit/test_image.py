"""First frames as people give them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.image import image_sha256, read_image
from tests.checkpoints import first_frame


def test_every_mode_of_image_becomes_rgb_with_transparency_on_white(tmp_path: Path) -> None:
    for mode, colour, expected in (("L", 90, (90,) * 3), ("RGBA", (255, 0, 0, 0), (255,) * 3), ("RGB", (1, 2, 3), (1, 2, 3))):
        Image.new(mode, (4, 3), colour).save(tmp_path / f"{mode}.png")
        image = read_image(tmp_path / f"{mode}.png")
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), expected)


def test_sixteen_bits_a_pixel_keep_their_shades_and_numbers_without_a_scale_are_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "16.png")
    shades = np.asarray(read_image(tmp_path / "16.png"))[..., 0].ravel()
    assert np.abs(shades.astype(int) - np.arange(256)).max() <= 1
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "f.tiff")
    Image.fromarray((ramp * 9).astype(np.int32)).save(tmp_path / "32.tiff")
    for name in ("f.tiff", "32.tiff"):
        with pytest.raises(ValueError, match="8 or 16"):
            read_image(tmp_path / name)


def test_a_photo_taken_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    Image.new("RGB", (8, 4)).save(tmp_path / "p.jpg", exif=exif)
    assert read_image(tmp_path / "p.jpg").size == (4, 8)


def test_what_cannot_be_read_is_told_in_one_line_with_its_path(tmp_path: Path) -> None:
    first_frame(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name, why in (("gone", "not exist"), ("torn", "read"), ("text", "no image"), ("empty", "no image"), ("folder", "read")):
        path = tmp_path / f"{name}.png"
        with pytest.raises(ValueError, match=f"^image {re.escape(repr(str(path)))} .*{why}.*$"):
            image_sha256(path)


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    one, other = first_frame(tmp_path / "a.png"), first_frame(tmp_path / "b.png")
    assert image_sha256(one) == image_sha256(other)
    assert image_sha256(first_frame(tmp_path / "c.png", 64)) != image_sha256(one)
