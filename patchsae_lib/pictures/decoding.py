"""From an image file to pixels: any format and mode to RGB, and a square from its middle."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps

#: what `read_image` reads: a path, an open binary file, or an image of Pillow's
Item = str | Path | IO[bytes] | Image.Image

# Without a list, Pillow would run Ghostscript on an EPS file that is called .jpg.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


def read_image(item: Item, fast: bool = False) -> Image.Image:
    """Read an image in RGB, the right way up, transparent parts white.

    With `fast` the image may come at a fraction of its size, where the format allows reading it so
    more quickly.

    Raises `OSError`, with the file's name, for a broken image, whatever Pillow raises, and for one
    with more pixels than Pillow considers safe.
    """
    name = getattr(item, "name", None) or getattr(item, "filename", None) or item
    try:
        with item if isinstance(item, Image.Image) else Image.open(item, "r", _formats()) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise ValueError(f"{image.width} × {image.height} pixels are too many")
            if fast:
                image.draft("RGB", (1, 1))
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except Exception as error:  # struct.error, TypeError, ...: a damaged file may raise any
        shown = str(name).encode("utf-8", "backslashreplace").decode()
        raise OSError(
            f"{shown} cannot be read as a picture: {str(error) or type(error).__name__}"
        ) from error


def square(image: Image.Image, size: int) -> torch.Tensor:
    """Cut the largest square from the middle of an RGB image: (3, size, size) uint8."""
    middle = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(middle)).permute(2, 0, 1)


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # not every Pillow has AVIF


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _from_16_bits(image)  # convert would clip it at 255
    if image.mode in ("I", "F"):
        raise ValueError(f"no value is known to be white in mode {image.mode} (32 bits a pixel)")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _from_16_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image, dtype=np.float32)
    levels = np.where(levels == image.info.get("transparency"), 65535, levels)
    return Image.fromarray((levels / 257).clip(0, 255).round().astype(np.uint8)).convert("RGB")
