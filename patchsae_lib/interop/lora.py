"""LoRA's maps in files: our own format, and CLIP-LoRA's `lora_weights.pt`.

Ours is one `.safetensors` with `down` and `up`, float32, of the shapes that `tuning.LoRA`
documents; its metadata are `format` and `config` (how they were made, as JSON).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.interop.descriptions import as_floats
from patchsae_lib.interop.files import read_by_content, read_tensors
from patchsae_lib.interop.hub import local_path
from patchsae_lib.interop.pickles import OnlyTensors, unpickle
from patchsae_lib.sae import require_finite
from patchsae_lib.tuning import LoRA

FORMAT = "patchsae-lora-1"
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
OFFICIAL = ("r", "alpha", "params")


def save_lora(path: str | Path, lora: LoRA) -> None:
    """Write LoRA's maps; `ValueError` if they are NaN or infinite."""
    tensors = {name: getattr(lora, name).float().contiguous() for name in ("down", "up")}
    for name, tensor in tensors.items():
        require_finite(tensor, name)
    metadata = {"format": FORMAT, "config": json.dumps(lora.config or {})}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_lora(path: str | Path) -> LoRA:
    """Load the maps in a file of ours, or in CLIP-LoRA's of the picture tower in all blocks.

    `path` may also be on the Hugging Face Hub, `hf://owner/repo/file[@revision]`.

    Raises `FileNotFoundError`, or `ValueError` for a file that is cut short or something else.
    """
    file = local_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no LoRA at {file}: train it (tuning.tune) or give another path")
    readers = {"torch": read_official, "safetensors": _read_ours}
    lora = read_by_content(file, readers, "what save_lora wrote or CLIP-LoRA's lora_weights.pt")
    down, up = lora.down, lora.up
    fits = down.ndim == up.ndim == 4 and down.shape[1] == 3 and down.mT.shape == up.shape
    if not fits:
        got = f"down {tuple(down.shape)}, up {tuple(up.shape)}"
        raise ValueError(f"{file}: expected (blocks, 3, rank, d) and (blocks, 3, d, rank): {got}")
    for name, tensor in (("down", down), ("up", up)):
        require_finite(tensor, f"{file}: {name}")
    return lora


def _read_ours(path: Path) -> LoRA:
    metadata, tensors = read_tensors(path, FORMAT, "LoRA's maps")
    return LoRA(tensors["down"], tensors["up"], json.loads(metadata["config"]))


def read_official(path: Path) -> LoRA:
    """Read what CLIP-LoRA's `save_lora` writes: W + B A · alpha / √r, in float32.

    Its `params` are some of q, k and v; those that are absent do not change. Raises `ValueError`
    for maps of the text tower or of some blocks only, which have no place here.
    """
    found = unpickle(path, OnlyTensors, "CLIP-LoRA")
    about = found.get("metadata") if isinstance(found, dict) else None
    if not isinstance(about, dict) or not isinstance(found.get("weights"), dict):
        raise ValueError(f"{path} is no file of CLIP-LoRA: it needs metadata and weights")
    where = {name: about.get(name) for name in ("encoder", "position")}
    if where != {"encoder": "vision", "position": "all"} or "o" in about.get("params", "o"):
        needed = "encoder vision, position all, params of q, k and v"
        raise ValueError(f"{path} is {where}, params {about.get('params')}: expected {needed}")
    layers = [found["weights"].get(f"layer_{i}") for i in range(len(found["weights"]))]
    if not all(isinstance(layer, dict) for layer in layers):
        raise ValueError(f"{path}: layers are missing from {sorted(found['weights'])}")
    rows = [[_maps(path, layer, name) for name in PROJECTIONS] for layer in layers]
    known = next((pair for row in rows for pair in row if pair), None)
    if known is None:
        raise ValueError(f"{path} has no maps")
    zero = tuple(map(torch.zeros_like, known))
    pairs = [[pair or zero for pair in row] for row in rows]
    if any(
        x.shape != y.shape for row in pairs for p in row for x, y in zip(p, known, strict=True)
    ):
        raise ValueError(f"{path}: maps of different shapes")
    down, up = (torch.stack([torch.stack([p[i] for p in row]) for row in pairs]) for i in (0, 1))
    scale = float(about.get("alpha", 1)) / math.sqrt(down.shape[2])
    return LoRA(down, scale * up, {"official": {k: about.get(k) for k in OFFICIAL}})


def _maps(path: Path, layer: dict[str, Any], name: str) -> tuple[Tensor, Tensor] | None:
    """The maps A (r, d) and B (d, r) of a projection, as float32; None without it."""
    if name not in layer:
        return None
    maps = layer[name] if isinstance(layer[name], dict) else {}
    pair = {key: maps.get(f"w_lora_{key}") for key in "AB"}
    if not all(isinstance(x, Tensor) and x.ndim == 2 for x in pair.values()):
        raise ValueError(f"{path}: {name} has no matrices w_lora_A and w_lora_B")
    floats = as_floats(path, pair)
    return floats["A"], floats["B"]
