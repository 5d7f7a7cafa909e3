"""What a file says of an autoencoder, held against its tensors: applied, or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchsae_lib.interop.files import listed
from patchsae_lib.sae import require_finite

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEPTH = 4  # of descriptions in descriptions


class StoredSAE(NamedTuple):
    """An autoencoder in a file: its tensors by our names, and how it was made."""

    tensors: Mapping[str, Tensor]
    activation: str
    k: int
    config: dict[str, Any]


def gather(
    path: Path, config: Mapping[str, Any], fields: Iterable[str], depth: int = DEPTH
) -> dict[str, Any]:
    """Return these fields of a description, wherever in it they stand: a runner's holds that of
    its SAE. What `metadata` tells of the making is left out.

    Raises `ValueError` for a field of two values.
    """
    found = {field: config[field] for field in fields if field in config}
    for key, value in config.items():
        parts = [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, dict)]
        for part in parts if key != "metadata" and depth else []:
            for field, nested in gather(path, part, fields, depth - 1).items():
                if found.setdefault(field, nested) != nested:
                    raise ValueError(
                        f"{path}: {field} is {found[field]!r}, and {nested!r} in {key}: which?"
                    )
    return found


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
    path: Path, tensors: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Tensor]:
    """Return the tensors of these names as float32.

    Raises `ValueError` if one is missing or quantised, or if another would change what the SAE
    computes.
    """
    # For a time SAELens wrote a scaling_factor of ones.
    idle = {"scaling_factor": lambda t: bool((t == 1).all())}
    extra = [n for n in tensors if n not in names and not (n in idle and idle[n](tensors[n]))]
    missing = [name for name in names if name not in tensors]
    if extra or missing:
        raise ValueError(f"{path} has {listed(tensors)}: expected {', '.join(names)} and no other")
    return as_floats(path, {name: tensors[name] for name in names})


def as_floats(path: Path, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors as float32; `ValueError` for integers and 8 bits, whose scale is not read."""
    for name, tensor in tensors.items():
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        if kind not in PRECISIONS:
            raise ValueError(f"{path}: {name} is {kind}, expected floats of 16 bits or more")
    return {name: tensor.float() for name, tensor in tensors.items()}


def require_sizes(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Refuse tensors, by our names, that do not fit each other or the sizes in the description,
    and those that are no numbers."""
    if tensors["W_enc"].ndim != 2 or not tensors["W_enc"].numel():
        shape = tuple(tensors["W_enc"].shape)
        raise ValueError(f"{path}: W_enc must be (d_vit, d_sae), got {shape}")
    d_vit, d_sae = tensors["W_enc"].shape
    shapes: dict[str, list[tuple[int, ...]]] = {
        "W_enc": [(d_vit, d_sae)], "b_enc": [(d_sae,)], "W_dec": [(d_sae, d_vit)],
        "b_dec": [(d_vit,)], "threshold": [(d_sae,), ()],
    }  # fmt: skip
    for name, tensor in tensors.items():
        if tensor.shape not in shapes[name]:
            expected = shapes[name][0]
            raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}, W_enc asks for {expected}")
        require_finite(tensor, f"{path}: {name}")
    for field, size in (("d_in", d_vit), ("d_sae", d_sae), ("num_latents", d_sae)):
        if config.get(field) not in (None, 0, size):  # sparsify's 0: by the expansion
            raise ValueError(f"{path}: {field} is {config[field]!r}, but the weights have {size}")


def read_k(path: Path, config: Mapping[str, Any], d_sae: int) -> int:
    """Return the k of a TopK; `ValueError` if the description has none from 1 to d_sae."""
    k = config.get("k")
    if type(k) is not int or not 1 <= k <= d_sae:
        raise ValueError(
            f"{path}: TopK with k = {k!r}, expected a number of latents from 1 to {d_sae}"
        )
    return k
