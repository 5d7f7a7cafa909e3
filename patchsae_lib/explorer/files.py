"""How the files of a bundle are encoded: JSON in a call, numbers as base64, pictures as WebP."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.explorer.strips import webp_uri
from patchsae_lib.sparse import SparseLatents

SIDE = 112  # pixels; larger pictures are scaled down
HEAD, TAIL = "patchsaeShard(", ");\n"


def write_shard(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of a bundle, whole or not at all."""
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    with atomic_path(path) as temporary:
        temporary.write_text(f"{HEAD}{text}{TAIL}", "utf-8")


def read_shard(path: str | Path) -> dict[str, Any]:
    """Return the content of a bundle's file. Raises `ValueError` if it is missing or cut short."""
    name = Path(path).name
    try:
        text = Path(path).read_text("utf-8")
        return json.loads(text.removeprefix(HEAD).removesuffix(TAIL))
    except FileNotFoundError:
        raise ValueError(f"{name} is not there") from None
    except ValueError:
        raise ValueError(f"{name} is not whole") from None


def base64_of(values: Tensor | pd.Series | np.ndarray | Sequence[int], dtype: str) -> str:
    """Return numbers as base64 of their bytes in a numpy `dtype`.

    >>> base64_of([1, 2], "<i2")
    'AQACAA=='
    """
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def array_of(text: str, dtype: str | np.dtype) -> np.ndarray:
    """Return the numbers of `base64_of`.

    >>> array_of("AQACAA==", "<i2").tolist()
    [1, 2]
    """
    return np.frombuffer(base64.b64decode(text), dtype)


def nibbles(values: Tensor) -> str:
    """Return numbers (0..15), rounded to 4 bits, two in a byte, as base64.

    >>> base64.b64decode(nibbles(torch.tensor([1.0, 15.0]))).hex()
    'f1'
    """
    flat = values.round().to(torch.uint8).flatten()
    low, high = F.pad(flat, (0, len(flat) % 2)).view(-1, 2).unbind(1)
    return base64_of(low | high << 4, "<u1")


def number_type(d: int) -> tuple[str, str]:
    """Return the smallest type that can number d latents: its name in JavaScript and in numpy."""
    return ("uint16", "<u2") if d <= 2**16 else ("uint32", "<u4")


def codes(latents: SparseLatents) -> dict[str, Any]:
    """Return the active latents of one picture as `codes-T-P.js` stores those of a model."""
    token, latent, value = (x.cpu() for x in (latents.token, latents.latent, latents.value))
    full = float(value.max()) if len(value) else 0.0
    starts = torch.searchsorted(token, torch.arange(latents.shape[1] + 1))
    levels = (255 * (value / max(full, 1e-12)).sqrt()).round().clamp_min(1)
    return {
        "full": full,
        "starts": base64_of(starts, "<u4"),
        "latents": base64_of(latent, number_type(latents.d_sae)[1]),
        "levels": base64_of(levels, "<u1"),
    }


def small(pictures: Tensor, side: int = SIDE) -> tuple[list[str], int]:
    """Return pictures (n, 3, h, w) uint8 as data URIs, and their side, at most `side` pixels."""
    side = min(side, pictures.shape[-1])
    if pictures.shape[2:] != (side, side):
        scaled = F.interpolate(pictures.float(), (side, side), mode="bilinear", antialias=True)
        pictures = scaled.round().clamp(0, 255).to(torch.uint8)
    images = (Image.fromarray(x.numpy()) for x in pictures.permute(0, 2, 3, 1).contiguous())
    # method 6 takes three times as long and saves a twentieth
    return [webp_uri(image, method=3, quality=72) for image in images], side
