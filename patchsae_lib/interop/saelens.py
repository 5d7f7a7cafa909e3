"""SAELens' autoencoders and their relatives, Prisma's and the authors', as weights of ours.

All three share one description, since Prisma's and the authors' code come from SAELens'. What
changes the mathematics is folded into the weights where that is exact: no b_dec before the
encoder, latents scaled by decoder norms, a constant input scale. Anything else that our `SAE`
cannot be is a `ValueError` that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.interop.files import (
    PARAMETERS,
    WEIGHTS,
    StoredSAE,
    read_json,
    read_k,
    require_fields,
    require_tensors,
)
from patchsae_lib.interop.pickles import OnlyConfigs, unpickle
from patchsae_lib.sae import SAE, require_finite

ACTIVATIONS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}  # of an architecture

# The values a description may have, the first being what a missing field means.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "activation_fn_str": ("relu", "topk"),
    "activation_fn": ("relu", "topk"),
    "normalize_activations": ("none", None, False),
    "reshape_activations": ("none",),
    "finetuning_scaling_factor": (False, None),
    "is_transcoder": (False,),
    "gated_sae": (None, False),
}


def from_saelens(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> StoredSAE:
    """Make our weights of SAELens' `sae_weights.safetensors`, with `cfg.json` as `config`.

    Raises `ValueError` for what our SAE cannot be, naming the field or tensor.
    """
    scale = 1.0
    if config.get("normalize_activations") == "expected_average_only_in":
        scale = _input_scale(path)
        config |= {"normalize_activations": "none"}
    stored = from_description(path, tensors, config)
    factors = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}  # it reads scale · z
    scaled = {name: tensor * factors.get(name, 1) for name, tensor in stored.tensors.items()}
    return stored._replace(tensors=scaled, config=config.get("metadata") or config)


def write_saelens(folder: str | Path, sae: SAE, config: Mapping[str, Any] | None = None) -> None:
    """Write an SAE as SAELens 6 does: `cfg.json` and `sae_weights.safetensors` in `folder`.

    ReLU is SAELens' `standard`, TopK its `topk`. BatchTopK becomes `jumprelu`, with its threshold
    for every latent, as SAELens itself saves it. `config`, JSON-able, goes into the metadata.

    Raises `ValueError` for weights that are NaN or infinite.
    """
    tensors = {name: getattr(sae, name).detach().float().contiguous() for name in PARAMETERS}
    for name, tensor in tensors.items():
        require_finite(tensor, name)
    cfg = _saelens_config(sae, config or {})
    if cfg["architecture"] == "jumprelu":
        tensors["threshold"] = sae.threshold.expand(sae.d_sae).contiguous()
    text = json.dumps(cfg, indent=1, allow_nan=False, default=str)
    cfg_path = Path(folder) / "cfg.json"
    with atomic_path(cfg_path) as about, atomic_path(cfg_path.with_name(WEIGHTS[0])) as weights:
        save_file(tensors, weights)
        about.write_text(text + "\n", encoding="utf-8")
        cfg_path.unlink(missing_ok=True)  # killed between the two renames: none, not a mixture


def read_torch(path: Path) -> StoredSAE:
    """Read the authors' or Prisma's checkpoint: `state_dict`, described by `cfg` or `config`.

    Prisma also writes state dicts alone, with the description in `config.json` beside them.

    Raises `ValueError` for another file and for what our SAE cannot be.
    """
    content = unpickle(path, OnlyConfigs, "an SAE")
    content = content if isinstance(content, dict) else {}
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(
        isinstance(state.get(name), Tensor) for name in PARAMETERS
    ):
        raise ValueError(
            f"{path} is a torch checkpoint without a state_dict of {', '.join(PARAMETERS)}: "
            "expected the authors' or Prisma's SAE"
        )
    config = content.get("cfg", content.get("config"))
    return from_description(path, state, _torch_config(path, config, alone=state is content))


def from_description(path: Path, tensors: Mapping[str, Any], config: dict[str, Any]) -> StoredSAE:
    """Fold what the fields of a description, of any version of SAELens, say into the weights.

    Raises `ValueError` for what our SAE cannot be, naming the field or tensor.
    """
    require_fields(path, config, ALLOWED)
    architecture = _architecture(path, config)
    is_jumprelu = architecture == "jumprelu"
    t = require_tensors(path, tensors, (*PARAMETERS, "threshold") if is_jumprelu else PARAMETERS)
    if config.get("rescale_acts_by_decoder_norm", False):
        # f = act(pre · ‖W_dec‖), ẑ = f W_dec / ‖W_dec‖ + b_dec
        norm = t["W_dec"].norm(dim=1).clamp_min(1e-8)
        t |= {"W_enc": t["W_enc"] * norm, "b_enc": t["b_enc"] * norm}
        t["W_dec"] = t["W_dec"] / norm[:, None]
    if not config.get("apply_b_dec_to_input", True):
        t["b_enc"] = t["b_enc"] + t["b_dec"] @ t["W_enc"]  # our SAE subtracts it again
    if is_jumprelu:
        t["threshold"] = t["threshold"].clamp_min(0)  # below 0 SAELens' is a ReLU
    k = read_k(path, config) if architecture == "topk" else 1
    return StoredSAE(t, ACTIVATIONS[architecture], k, config)


def _input_scale(path: Path) -> float:
    """Read the factor that SAELens' trainer folds into the weights only at the end."""
    scale = read_json(path.with_name("activation_scaler.json")).get("scaling_factor")
    if not isinstance(scale, float):
        raise ValueError(f"{path}: activation_scaler.json has the scaling_factor {scale!r}")
    return scale


def _saelens_config(sae: SAE, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Describe an SAE as SAELens 6 does in `cfg.json`."""
    cfg: dict[str, Any] = {"d_in": sae.d_vit, "d_sae": sae.d_sae, "dtype": "float32"}
    cfg |= {"device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none"}
    cfg |= {"reshape_activations": "none", "architecture": "standard"}
    if sae.activation == "topk":
        cfg |= {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}
    elif sae.activation != "relu":
        cfg |= {"architecture": "jumprelu"}
    return cfg | {"metadata": {**metadata, "sae_lens_version": "6.0.0"}}  # whose format this is


def _torch_config(path: Path, config: Any, alone: bool) -> dict[str, Any]:
    """Return the description of a torch checkpoint, in it or beside it."""
    beside = path.with_name("config.json")
    if config is None and (alone or beside.is_file()):
        return read_json(beside)
    if config is None:
        return {}  # the authors' own SAE is always the same
    if not isinstance(config, dict) or not config:
        raise ValueError(f"{path}: its configuration has no fields, which say what the SAE is")
    return dict(config)


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn_str", config.get("activation_fn"))
    if architecture == "standard" and activation == "topk":  # before SAELens 6
        architecture = "topk"
    if architecture not in ACTIVATIONS:
        raise ValueError(
            f"{path}: the architecture {architecture!r} is not read, only {', '.join(ACTIVATIONS)}"
        )
    return architecture
