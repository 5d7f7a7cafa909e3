"""Other libraries' autoencoders: their files as the weights of ours, or refused by name.

The authors', Prisma's and SAELens' SAEs share one description (Prisma's and the authors' code come
from SAELens'), sparsify's has another. What changes the mathematics is folded into the weights
where that is exact: no b_dec before the encoder, latents scaled by decoder norms, a constant input
scale. Everything else that our `SAE` cannot be is a `ValueError` that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.pickles import OnlyConfigs, unpickle
from patchsae_lib.sae import SAE, require_finite

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
WEIGHTS = ("sae_weights.safetensors", "sae.safetensors", "weights.pt")  # SAELens, sparsify, Prisma
CONFIGS = ("cfg.json", "config.json", "activation_scaler.json")
ARCHITECTURES = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}  # SAELens' → ours

# What a description may say of each field, the first being what it means to say nothing.
LENS_ONLY: dict[str, tuple[Any, ...]] = {
    "activation_fn_str": ("relu", "topk"),
    "activation_fn": ("relu", "topk"),
    "normalize_activations": ("none", None, False),
    "reshape_activations": ("none",),
    "finetuning_scaling_factor": (False, None),
    "is_transcoder": (False,),
    "gated_sae": (None, False),
}
SPARSIFY_ONLY: dict[str, tuple[Any, ...]] = {
    "activation": ("topk",),
    "signed": (False,),
    "skip_connection": (False,),
    "transcode": (False,),
}  # multi_topk adds a loss and changes nothing that is computed afterwards


class Found(NamedTuple):
    """An SAE as read: tensors by the names of ours, its activation and k, and who made it how."""

    tensors: Mapping[str, Tensor]
    activation: str
    k: int
    config: dict[str, Any]


def weights_file(path: Path) -> Path:
    """The file with the weights, given it, the folder it is in, or the JSON beside it.

    Raises `ValueError` for a folder where it is not clear which file that is.
    """
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
        if start[:1] != b"{" or b"\0" in start:  # zeros: the length that safetensors begin with
            return path
    if not path.exists():
        return path
    folder = path if path.is_dir() else path.parent
    files = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pt"))
    found = [name for name in files if name in WEIGHTS] or files
    if len(found) != 1:
        raise ValueError(
            f"{folder} has {', '.join(found) or 'no .safetensors or .pt file'}: "
            "give the path of one file with weights"
        )
    return folder / found[0]


# --- safetensors with a cfg.json beside: SAELens, sparsify -------------------------------------


def read_safetensors(path: Path) -> Found:
    """SAELens' `sae_weights.safetensors` or sparsify's `sae.safetensors`, with cfg.json beside."""
    tensors, config = load_file(path), _json(path.with_name("cfg.json"))
    if "encoder.weight" in tensors:
        return _sparsify(path, tensors, config)
    scale: Any = 1.0
    if config.get("normalize_activations") == "expected_average_only_in":
        # SAELens' trainer folds it in at the end; before, the factor is in a file of its own.
        scale = _json(path.with_name("activation_scaler.json")).get("scaling_factor")
        if not isinstance(scale, float):
            raise ValueError(f"{path}: activation_scaler.json has the scaling_factor {scale!r}")
        config |= {"normalize_activations": "none"}
    found = _lens(path, tensors, config)
    by = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}  # it reads scale · z
    tensors = {name: tensor * by.get(name, 1) for name, tensor in found.tensors.items()}
    return found._replace(tensors=tensors, config=config.get("metadata") or config)


def write_saelens(folder: str | Path, sae: SAE, config: Mapping[str, Any] | None = None) -> None:
    """Write an SAE as SAELens 6 does: `cfg.json` and `sae_weights.safetensors` in `folder`.

    ReLU is their `standard`, TopK `topk`, and BatchTopK as they save it too: `jumprelu`, with its
    threshold for every latent. `config`, JSON-able, goes into their metadata.

    Raises `ValueError` for weights that are NaN or infinite.
    """
    tensors = {name: getattr(sae, name).detach().float().contiguous() for name in PARAMETERS}
    for name, tensor in tensors.items():
        require_finite(tensor, name)
    cfg: dict[str, Any] = {"d_in": sae.d_vit, "d_sae": sae.d_sae, "dtype": "float32"}
    cfg |= {"device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none"}
    cfg |= {"reshape_activations": "none", "architecture": "standard"}
    if sae.activation == "topk":
        cfg |= {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}
    elif sae.activation != "relu":
        cfg |= {"architecture": "jumprelu"}
        tensors["threshold"] = sae.threshold.expand(sae.d_sae).contiguous()
    cfg["metadata"] = {**(config or {}), "sae_lens_version": "6.0.0"}  # whose format this is
    text = json.dumps(cfg, indent=1, allow_nan=False, default=str)
    there = Path(folder) / "cfg.json"
    with atomic_path(there) as about, atomic_path(there.with_name(WEIGHTS[0])) as weights:
        save_file(tensors, weights)
        about.write_text(text + "\n", encoding="utf-8")
        there.unlink(missing_ok=True)  # killed between the two renames: none, not a mixture


def _sparsify(path: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Found:
    _require(path, config, SPARSIFY_ONLY)
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec"}
    tensors = _exactly(path, tensors, (*names, "b_dec"))
    renamed = {names.get(name, name): tensor for name, tensor in tensors.items()}
    return Found(renamed | {"W_enc": renamed["W_enc"].T}, "topk", _k(path, config), config)


# --- torch checkpoints: the authors', Prisma's -------------------------------------------------


def read_torch(path: Path) -> Found:
    """The authors' or Prisma's checkpoint: `state_dict`, and its description in `cfg` or `config`.

    Prisma also has state dicts alone, with the description in config.json beside.
    """
    found = unpickle(path, OnlyConfigs, "an SAE")
    found = found if isinstance(found, dict) else {}
    state = found.get("state_dict", found)
    if not isinstance(state, dict) or not all(
        isinstance(state.get(name), Tensor) for name in PARAMETERS
    ):
        raise ValueError(
            f"{path} is a torch checkpoint without a state_dict of {', '.join(PARAMETERS)}: "
            "expected the authors' or Prisma's SAE"
        )
    config = found.get("cfg", found.get("config"))
    beside = path.with_name("config.json")
    if config is None and (state is found or beside.is_file()):
        config = _json(beside)
    elif config is None:
        config = {}  # the authors' own is always the same
    elif not isinstance(config, dict) or not config:
        raise ValueError(f"{path}: its configuration has no fields, which say what the SAE is")
    return _lens(path, state, dict(config))


# --- descriptions ------------------------------------------------------------------------------


def _lens(path: Path, tensors: Mapping[str, Any], config: dict[str, Any]) -> Found:
    """What SAELens' fields, of any version, and those of its relatives make of the weights."""
    _require(path, config, LENS_ONLY)
    activation = config.get("activation_fn_str", config.get("activation_fn"))
    architecture = config.get("architecture", "standard")
    if architecture == "standard" and activation == "topk":  # before SAELens 6
        architecture = "topk"
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path}: the architecture {architecture!r} is not read, only "
            f"{', '.join(ARCHITECTURES)}"
        )
    wanted = (*PARAMETERS, "threshold") if architecture == "jumprelu" else PARAMETERS
    t = _exactly(path, tensors, wanted)
    if config.get("rescale_acts_by_decoder_norm", False):
        # f = act(pre · ‖W_dec‖), ẑ = f W_dec / ‖W_dec‖ + b_dec
        norm = t["W_dec"].norm(dim=1).clamp_min(1e-8)
        t |= {"W_enc": t["W_enc"] * norm, "b_enc": t["b_enc"] * norm}
        t["W_dec"] = t["W_dec"] / norm[:, None]
    if not config.get("apply_b_dec_to_input", True):
        t["b_enc"] = t["b_enc"] + t["b_dec"] @ t["W_enc"]  # ours takes it away again
    if architecture == "jumprelu":
        t["threshold"] = t["threshold"].clamp_min(0)  # theirs is ReLU below 0
    return Found(
        t, ARCHITECTURES[architecture], _k(path, config) if architecture == "topk" else 1, config
    )


def _require(path: Path, config: dict[str, Any], only: Mapping[str, tuple[Any, ...]]) -> None:
    for field, values in only.items():
        if (value := config.get(field, values[0])) not in values:
            raise ValueError(
                f"{path}: {field} is {value!r}, which an SAE of ours cannot be: expected "
                f"{' or '.join(map(repr, values))}"
            )


def _exactly(path: Path, tensors: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of those names, float32; others that would change the result are an error."""
    # For a time SAELens wrote a scaling_factor of ones; an SAE of ours always has a threshold ().
    idle = {"scaling_factor": lambda t: bool((t == 1).all()), "threshold": lambda t: t.ndim == 0}
    extra = [n for n in tensors if n not in names and not (n in idle and idle[n](tensors[n]))]
    missing = [name for name in names if name not in tensors]
    if extra or missing:
        raise ValueError(
            f"{path} has {', '.join(sorted(tensors))}: expected {', '.join(names)} and no other"
        )
    return {name: tensors[name].float() for name in names}


def _k(path: Path, config: dict[str, Any]) -> int:
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if not isinstance(k, int):
        raise ValueError(f"{path}: TopK with k = {k!r}, expected a number of latents")
    return k


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no readable {path}: it says what the weights beside it are; copy it too ({error})"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, expected a JSON object")
    return found
