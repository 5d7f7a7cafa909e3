"""Autoencoders in files: ours and the authors', told apart by content (paper section 3.1).

Ours is safetensors: `W_enc` (d_vit, d_sae), `b_enc` (d_sae,), `W_dec` (d_sae, d_vit), `b_dec`
(d_vit,), float32 or float16, and `threshold` (), float32. Its metadata hold `format`,
`activation`, `k` and `config` (whatever the caller says about its making) as JSON.
Reading a file never runs code from it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.sae import SAE, require_finite

FORMAT = "patchsae-sae-1"
AUTHORS_CONFIG = "ViTSAERunnerConfig"  # the authors' class that their checkpoints pickle
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


def save_sae(
    path: str | Path, sae: SAE, config: Mapping[str, Any] | None = None, half: bool = False
) -> None:
    """Write an SAE, and what made it as JSON-able `config`; `half` stores float16.

    Raises `ValueError` for weights that are NaN or infinite, also if only so in float16.
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
    """The SAE in a file of our format or the authors', float32, frozen, in eval mode.

    Raises `FileNotFoundError`, or `ValueError` for a file that is cut short or something else.
    """
    return _read(path)[0]


def read_config(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its making: our `config`, or the fields of the authors' one."""
    return _read(path)[1]


def _read(path: str | Path) -> tuple[SAE, dict[str, Any]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no autoencoder at {path}: train one (notebook 1_training) or give another path"
        )
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[:2] == b"PK":
            return _read_authors(path)
        if start[8:] == b"{":
            return _read_ours(path)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({error}): copy or train it again"
        ) from error
    raise ValueError(
        f"{path} holds neither safetensors nor a torch checkpoint: expected what save_sae wrote "
        "or the authors' .pt file"
    )


def _read_ours(path: Path) -> tuple[SAE, dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} is a safetensors file but not an autoencoder of ours: its format is "
                f"{metadata.get('format')!r}, expected {FORMAT!r}, with {', '.join(file.keys())}"
            )
        tensors = {name: file.get_tensor(name) for name in (*PARAMETERS, "threshold")}
    sae = _build(path, tensors, metadata["activation"], json.loads(metadata["k"]))
    return sae, json.loads(metadata["config"])


class _AuthorsConfig:
    """Stands in for the authors' class while unpickling: it takes the fields and does nothing."""


def _read_authors(path: Path) -> tuple[SAE, dict[str, Any]]:
    # weights_only unpickles tensors, plain values and the stand-in; all else is an error. It gets
    # an open file because torch would judge a path by its extension.
    with path.open("rb") as file:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        allowed: list[Any] = [
            (_AuthorsConfig, name) for name in classes if name.endswith(f".{AUTHORS_CONFIG}")
        ]
        file.seek(0)
        try:
            with torch.serialization.safe_globals(allowed):
                found = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, TypeError, AttributeError, LookupError) as error:
            others = sorted(set(classes) - {name for _, name in allowed})
            raise ValueError(
                f"{path} is not an SAE checkpoint that is safe to read: it wants to run "
                f"{', '.join(others) or AUTHORS_CONFIG}"
            ) from error
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(state.get(name), Tensor) for name in PARAMETERS
    ):
        raise ValueError(
            f"{path} is a torch checkpoint without a state_dict of {', '.join(PARAMETERS)}: "
            "expected the authors' SAE"
        )
    config = found.get("cfg")
    return _build(path, state), vars(config) if isinstance(config, _AuthorsConfig) else {}


def _build(path: Path, tensors: Mapping[str, Tensor], activation: str = "relu", k: int = 1) -> SAE:
    W_enc = tensors["W_enc"]
    if W_enc.ndim != 2:
        raise ValueError(f"{path}: W_enc must be (d_vit, d_sae), got {tuple(W_enc.shape)}")
    sae = SAE(W_enc.shape[0], W_enc.shape[1], activation, k)
    for name, expected in sae.state_dict().items():
        tensor = tensors.get(name, expected)
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{path}: {name} is {tuple(tensor.shape)}, W_enc asks for {tuple(expected.shape)}"
            )
        require_finite(tensor, f"{path}: {name}")
        expected.copy_(tensor)
    return sae.eval().requires_grad_(False)
