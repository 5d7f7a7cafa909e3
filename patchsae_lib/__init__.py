"""Companion to the PatchSAE paper: sparse autoencoders on the patches inside CLIP (ICLR 2025)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# What a user calls, by module, in the order a reader meets it. A module is imported when one of
# its names is first used, because torch alone takes seconds.
EXPORTS = {
    "study": ("Study",),
    "profiles": ("load_profile", "Profile"),
    "interop": ("load_clip", "load_sae", "save_sae", "load_prompts"),
    "pictures": ("open_pictures",),
    "world": ("World",),
    "clip": ("SplitCLIP",),
    "tokens": ("Tokens", "collect"),
    "sae": ("SAE",),
    "training": ("train",),
    "evaluation": ("evaluate_sae",),
    "latents": ("LatentTable",),
    "ablation": ("mask_latents",),
    "maple": ("adapt", "train_prompts"),
    "figures": ("figures",),
    "explorer": ("Explorer",),
}
_MODULE_OF = {name: module for module, names in EXPORTS.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import an exported name when it is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    return module if name == _MODULE_OF[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:  # the same names for editors and type checkers
    from patchsae_lib import figures as figures
    from patchsae_lib.ablation import mask_latents as mask_latents
    from patchsae_lib.clip import SplitCLIP as SplitCLIP
    from patchsae_lib.evaluation import evaluate_sae as evaluate_sae
    from patchsae_lib.explorer import Explorer as Explorer
    from patchsae_lib.interop import load_clip as load_clip
    from patchsae_lib.interop import load_prompts as load_prompts
    from patchsae_lib.interop import load_sae as load_sae
    from patchsae_lib.interop import save_sae as save_sae
    from patchsae_lib.latents import LatentTable as LatentTable
    from patchsae_lib.maple import adapt as adapt
    from patchsae_lib.maple import train_prompts as train_prompts
    from patchsae_lib.pictures import open_pictures as open_pictures
    from patchsae_lib.profiles import Profile as Profile
    from patchsae_lib.profiles import load_profile as load_profile
    from patchsae_lib.sae import SAE as SAE
    from patchsae_lib.study import Study as Study
    from patchsae_lib.tokens import Tokens as Tokens
    from patchsae_lib.tokens import collect as collect
    from patchsae_lib.training import train as train
    from patchsae_lib.world import World as World
