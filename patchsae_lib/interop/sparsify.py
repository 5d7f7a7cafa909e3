"""sparsify's autoencoders: `sae.safetensors` with `cfg.json` beside it; TopK."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from patchsae_lib.interop.descriptions import (
    StoredSAE,
    gather,
    read_k,
    require_fields,
    require_sizes,
    require_tensors,
)

NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}

# The values a description may have, the first being what a missing field means. multi_topk adds a
# loss and changes nothing that is computed afterwards.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "activation": ("topk",),
    "signed": (False,),
    "skip_connection": (False,),
    "transcode": (False,),
}


def is_sparsify(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors have sparsify's names."""
    return "encoder.weight" in tensors


def from_sparsify(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> StoredSAE:
    """Rename sparsify's tensors; the encoder is transposed there.

    Raises `ValueError` for what our SAE cannot be, naming the field or tensor.
    """
    fields = gather(path, config, (*ALLOWED, "k", "d_in", "num_latents"))
    require_fields(path, fields, ALLOWED)
    tensors = require_tensors(path, tensors, tuple(NAMES))
    renamed = {NAMES[name]: tensor for name, tensor in tensors.items()}
    renamed["W_enc"] = renamed["W_enc"].T
    require_sizes(path, renamed, fields)
    return StoredSAE(renamed, "topk", read_k(path, fields, len(renamed["b_enc"])), config)
