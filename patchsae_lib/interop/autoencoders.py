"""Autoencoders in files: our own format, and others' told apart by content (section 3.1).

What is read, all of it also from `hf://`:

- ours: one `.safetensors`, written by `save_sae`
- the authors': `.pt` with `cfg` (or `config`) and `state_dict` (`saelens.read_torch`)
- Prisma's: the same, or `weights.pt` with `config.json`; ReLU or TopK
- SAELens': `sae_weights.safetensors` with `cfg.json`; `standard`, `topk`, `jumprelu`, or
  `batchtopk` with its threshold; written by `saelens.write_saelens`
- sparsify's: `sae.safetensors` with `cfg.json`; TopK (`sparsify.from_sparsify`)

Ours holds `W_enc` (d_vit, d_sae), `b_enc` (d_sae,), `W_dec` (d_sae, d_vit) and `b_dec` (d_vit,) as
float32 or float16, and `threshold` () (for `jumprelu` (d_sae,)) as float32. Its metadata are
`format`, `activation`, `k` and `config` (how it was made, as JSON). Reading never runs code.
What a description says is held against the tensors: applied, or refused (`descriptions`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.interop.descriptions import (
    PARAMETERS,
    StoredSAE,
    read_k,
    require_sizes,
    require_tensors,
)
from patchsae_lib.interop.files import (
    read_by_content,
    read_format,
    read_json,
    read_tensors,
    require_memory,
    unwrapped,
    weights_file,
)
from patchsae_lib.interop.hub import local_path
from patchsae_lib.interop.saelens import from_saelens, read_torch
from patchsae_lib.interop.sparsify import from_sparsify, is_sparsify
from patchsae_lib.sae import SAE, require_finite

FORMAT = "patchsae-sae-1"


def save_sae(
    path: str | Path, sae: SAE, config: Mapping[str, Any] | None = None, half: bool = False
) -> None:
    """Write an SAE, and how it was made as the JSON-able `config`; `half` stores float16.

    Raises `ValueError` for weights that are NaN or infinite, in float16 if that is stored.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {name: getattr(sae, name).detach().to(dtype) for name in PARAMETERS}
    for name, tensor in tensors.items():
        require_finite(tensor, f"{name} as {dtype}")
    metadata = {
        "format": FORMAT,
        "activation": sae.activation,
        "k": json.dumps(sae.k),
        "config": json.dumps(dict(config or {})),
    }
    with atomic_path(path) as temporary:
        save_file({**tensors, "threshold": sae.threshold}, temporary, metadata)


def load_sae(path: str | Path) -> SAE:
    """Load the SAE in a file: float32, frozen, in eval mode, on the CPU.

    `path` is the file, its folder, or `hf://owner/repo[/folder or file][@revision]` on the Hugging
    Face Hub, downloaded unless the cache has it.

    Raises `FileNotFoundError`, or `ValueError` for a file that is cut short, something else, or an
    SAE that ours cannot be, saying why.
    """
    return _build(_read(weights_file(local_path(path))))


def read_config(path: str | Path) -> dict[str, Any]:
    """Return what a file says of its making: our `config`, or another library's description."""
    return _read(weights_file(local_path(path))).config


def _read(path: Path) -> StoredSAE:
    if not path.is_file():
        raise FileNotFoundError(
            f"no autoencoder at {path}: train one (notebook 1_training) or give another path"
        )
    require_memory(path)
    readers = {"torch": read_torch, "safetensors": _read_safetensors}
    expected = "an SAE of ours, the authors', Prisma, SAELens or sparsify"
    return read_by_content(path, readers, expected)


def _read_safetensors(path: Path) -> StoredSAE:
    if read_format(path) != FORMAT and path.with_name("cfg.json").is_file():
        tensors, cfg = unwrapped(path, load_file(path)), read_json(path.with_name("cfg.json"))
        return (from_sparsify if is_sparsify(tensors) else from_saelens)(path, tensors, cfg)
    hint = "; SAELens' and sparsify's need cfg.json beside them"
    metadata, tensors = read_tensors(path, FORMAT, "an autoencoder", hint)
    tensors = require_tensors(path, tensors, (*PARAMETERS, "threshold"))
    require_sizes(path, tensors, {})
    activation, k = metadata["activation"], json.loads(metadata["k"])
    if (activation == "jumprelu") != (tensors["threshold"].ndim == 1):
        shape = tuple(tensors["threshold"].shape)
        raise ValueError(f"{path}: {activation} does not have a threshold of the shape {shape}")
    if activation in ("topk", "batchtopk"):
        read_k(path, {"k": k}, len(tensors["b_enc"]))
    return StoredSAE(tensors, activation, k, json.loads(metadata["config"]))


def _build(stored: StoredSAE) -> SAE:
    d_vit, d_sae = stored.tensors["W_enc"].shape
    sae = SAE(d_vit, d_sae, stored.activation, stored.k)
    for name, tensor in stored.tensors.items():
        getattr(sae, name).data.copy_(tensor)
    return sae.eval().requires_grad_(False)
