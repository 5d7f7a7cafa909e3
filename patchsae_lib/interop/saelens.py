"""SAELens' autoencoders and their relatives, Prisma's and the authors', as weights of ours.

All three share one description, since Prisma's and the authors' code come from SAELens'. What
changes the mathematics is folded into the weights where that is exact: no b_dec before the
encoder, latents scaled by decoder norms, a constant input scale. Anything else that our `SAE`
cannot be is a `ValueError` that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.interop.descriptions import (
    PARAMETERS,
    StoredSAE,
    gather,
    read_k,
    require_fields,
    require_sizes,
    require_tensors,
)
from patchsae_lib.interop.files import WEIGHTS, listed, read_json, unwrapped
from patchsae_lib.interop.pickles import OnlyConfigs, unpickle
from patchsae_lib.sae import SAE, require_finite

# Of an architecture the activations that a description may name, and ours; None: it names none.
KINDS: dict[str, dict[str | None, str]] = {
    "standard": {None: "relu", "relu": "relu", "topk": "topk"},  # topk before SAELens 6
    "topk": {None: "topk", "topk": "topk"},
    "jumprelu": {None: "jumprelu", "relu": "jumprelu", "jumprelu": "jumprelu"},
    "batchtopk": {None: "jumprelu", "batchtopk": "jumprelu"},  # with the threshold that it learnt
}
NAMES = ("activation_fn_str", "activation_fn", "activation")  # of the activation

# The values a description may have, the first being what a missing field means.
ALLOWED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(NAMES, (None, "relu", "topk", "jumprelu", "batchtopk")),
    "normalize_activations": ("none", None, False),
    "reshape_activations": ("none",),
    "finetuning_scaling_factor": (False, None),
    "is_transcoder": (False,),
    "gated_sae": (None, False),
    "apply_b_dec_to_input": (True, False),
    "rescale_acts_by_decoder_norm": (False, True),
}
FIELDS = (*ALLOWED, "architecture", "k", "d_in", "d_sae")


def from_saelens(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> StoredSAE:
    """Make our weights of SAELens' `sae_weights.safetensors`, with `cfg.json` as `config`.

    Raises `ValueError` for what our SAE cannot be, naming the field or tensor.
    """
    scale = 1.0
    fields = gather(path, config, FIELDS)
    if fields.get("normalize_activations") == "expected_average_only_in":
        scale = _input_scale(path)
        fields |= {"normalize_activations": "none"}
    stored = from_description(path, tensors, fields)
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
    if "_parameters" in content:
        raise ValueError(f"{path} is a pickled module, which is not run: save its state_dict")
    state = content.get("state_dict", content)
    tensors = unwrapped(path, state) if isinstance(state, dict) else {}
    if not tensors.keys() >= set(PARAMETERS):
        raise ValueError(
            f"{path} is a torch checkpoint without a state_dict of {', '.join(PARAMETERS)}, but "
            f"of {listed(tensors) or 'nothing'}: expected the authors' or Prisma's SAE"
        )
    config = content.get("cfg", content.get("config"))
    config = _torch_config(path, config, alone=state is content)
    stored = from_description(path, tensors, gather(path, config, FIELDS))
    return stored._replace(config=config)


def from_description(path: Path, tensors: Mapping[str, Any], fields: dict[str, Any]) -> StoredSAE:
    """Fold what the fields of a description, of any version of SAELens, say into the weights.

    Raises `ValueError` for what our SAE cannot be, naming the field or tensor.
    """
    require_fields(path, fields, ALLOWED)
    activation, tensors = _activation(path, fields, tensors)
    is_jumprelu = activation == "jumprelu"
    t = require_tensors(path, tensors, (*PARAMETERS, "threshold") if is_jumprelu else PARAMETERS)
    require_sizes(path, t, fields)
    if fields.get("rescale_acts_by_decoder_norm", False):
        # f = act(pre · ‖W_dec‖), ẑ = f W_dec / ‖W_dec‖ + b_dec
        norm = t["W_dec"].norm(dim=1).clamp_min(1e-8)
        t |= {"W_enc": t["W_enc"] * norm, "b_enc": t["b_enc"] * norm}
        t["W_dec"] = t["W_dec"] / norm[:, None]
    if not fields.get("apply_b_dec_to_input", True):
        t["b_enc"] = t["b_enc"] + t["b_dec"] @ t["W_enc"]  # our SAE subtracts it again
    d_sae = len(t["b_enc"])
    if is_jumprelu:
        t["threshold"] = t["threshold"].clamp_min(0).expand(d_sae)  # below 0 SAELens' is a ReLU
    k = read_k(path, fields, d_sae) if activation == "topk" else 1
    return StoredSAE(t, activation, k, fields)


def _input_scale(path: Path) -> float:
    """Read the factor that SAELens' trainer folds into the weights only at the end."""
    scale: Any = read_json(path.with_name("activation_scaler.json")).get("scaling_factor")
    if type(scale) not in (int, float) or not 0 < scale < math.inf:
        beside = path.with_name("activation_scaler.json")
        raise ValueError(f"{beside}: scaling_factor {scale!r} is no number above 0")
    return float(scale)


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


def _activation(
    path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return our activation of a description, and the tensors without a threshold that cuts
    nothing. A threshold without a word on the activation is that which a BatchTopK learnt."""
    architecture = fields.get("architecture")
    named = {fields[name]: name for name in NAMES if fields.get(name) is not None}
    if architecture not in (None, *KINDS):
        raise ValueError(
            f"{path}: the architecture {architecture!r} is not read, only {', '.join(KINDS)}"
        )
    tensors = {"threshold" if n == "topk_threshold" else n: t for n, t in tensors.items()}
    threshold = tensors.get("threshold")
    is_idle = isinstance(threshold, Tensor) and bool((threshold <= 0).all())
    if architecture is None and not named:
        if "k" in fields:
            raise ValueError(f"{path}: k is {fields['k']!r}, but no architecture is named")
        architecture = "standard" if threshold is None or is_idle else "batchtopk"
    activation = next(iter(named), None)
    kind = KINDS[architecture or "standard"].get(activation)
    if len(named) > 1 or kind is None:
        words = [f"{name} is {value!r}" for value, name in named.items()]
        raise ValueError(
            f"{path}: the architecture is {architecture!r} and {', '.join(words)}: a contradiction"
        )
    if is_idle and kind != "jumprelu":
        del tensors["threshold"]
    return kind, tensors
