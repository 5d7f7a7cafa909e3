"""Files with weights: which one of a folder, of what kind, and whether it holds what it should."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
WEIGHTS = ("sae_weights.safetensors", "sae.safetensors", "weights.pt")  # SAELens, sparsify, Prisma
CONFIGS = ("cfg.json", "config.json", "activation_scaler.json")
T = TypeVar("T")


class StoredSAE(NamedTuple):
    """An autoencoder in a file: its tensors by our names, and how it was made."""

    tensors: Mapping[str, Tensor]
    activation: str
    k: int
    config: dict[str, Any]


def weights_file(path: Path) -> Path:
    """Find the file with the weights, given the file, its folder, or the JSON beside it.

    Raises `ValueError` if it is not clear which file of the folder that is.
    """
    if not path.exists() or (path.is_file() and not _is_json(path)):
        return path
    folder = path if path.is_dir() else path.parent
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pt"))
    candidates = [name for name in names if name in WEIGHTS] or names
    if len(candidates) != 1:
        raise ValueError(
            f"{folder} has {', '.join(candidates) or 'no .safetensors or .pt file'}: "
            "give the path of one file with weights"
        )
    return folder / candidates[0]


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return start[:1] == b"{" and b"\0" not in start  # a safetensors file begins with its length


def read_by_content(path: Path, readers: Mapping[str, Callable[[Path], T]], expected: str) -> T:
    """Read a file with `readers["torch"]` or `readers["safetensors"]`, whatever its name is.

    Raises `ValueError` if it is neither or damaged; `expected` says what it should be.
    """
    with path.open("rb") as file:
        start = file.read(9)
    kind = "torch" if start[:2] == b"PK" else "safetensors" if start[8:] == b"{" else ""
    if not kind:
        raise ValueError(
            f"{path} holds neither safetensors nor a torch checkpoint: expected {expected}"
        )
    try:
        return readers[kind](path)
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({error}): copy or train it again"
        ) from error


def read_format(path: Path) -> str | None:
    """Return the format that a safetensors file of ours names in its metadata, if it does."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("format")


def read_tensors(
    path: Path, expected: str, content: str, hint: str = ""
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read metadata and tensors of a safetensors file of ours, of the format `expected`.

    Raises `ValueError` for another file, saying that it is not `content` of ours.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != expected:
            raise ValueError(
                f"{path} is a safetensors file but not {content} of ours: its format is "
                f"{metadata.get('format')!r}, expected {expected!r}, "
                f"with {', '.join(file.keys())}{hint}"
            )
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON file that describes the weights beside it.

    Raises `ValueError` if there is none, or if it holds anything but an object.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no readable {path}: it says what the weights beside it are; copy it too ({error})"
        ) from error
    if not isinstance(description, dict):
        raise ValueError(f"{path} holds {type(description).__name__}, expected a JSON object")
    return description


def require_fields(
    path: Path, config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]
) -> None:
    """Refuse a description with a value that our SAE cannot have.

    `allowed` lists the values of each field, first the one that a missing field means.
    """
    for field, values in allowed.items():
        if (value := config.get(field, values[0])) not in values:
            raise ValueError(
                f"{path}: {field} is {value!r}, which an SAE of ours cannot be: expected "
                f"{' or '.join(map(repr, values))}"
            )


def require_tensors(
    path: Path, tensors: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the tensors of these names as float32.

    Raises `ValueError` if one is missing, or if another would change what the SAE computes.
    """
    # For a time SAELens wrote a scaling_factor of ones; an SAE of ours always has a threshold ().
    idle = {"scaling_factor": lambda t: bool((t == 1).all()), "threshold": lambda t: t.ndim == 0}
    extra = [n for n in tensors if n not in names and not (n in idle and idle[n](tensors[n]))]
    missing = [name for name in names if name not in tensors]
    if extra or missing:
        raise ValueError(
            f"{path} has {', '.join(sorted(tensors))}: expected {', '.join(names)} and no other"
        )
    return {name: tensors[name].float() for name in names}


def read_k(path: Path, config: Mapping[str, Any]) -> int:
    """Return the k of a TopK; `ValueError` if the description has none."""
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if not isinstance(k, int):
        raise ValueError(f"{path}: TopK with k = {k!r}, expected a number of latents")
    return k
