"""What a run is made of: frozen dataclasses, read from a TOML file.

A profile is a name (`smoke`, `world`, `trial`, `clip`, `paper`) or the path of a TOML file with
the same tables; `base = "clip"` at its top takes what it does not say from that one. The defaults
of every dataclass are the paper's values (section 3.1 and appendix A.1); the files in
`patchsae_lib/configs/` say where a profile differs.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

CONFIGS = Path(__file__).parent / "configs"
PRECISIONS = "float32, bfloat16 or auto"


@dataclass(frozen=True)
class ModelConfig:
    """The CLIP that is looked into.

    `name` is `small` (the CLIP in `data/`) or any open_clip ViT; `pretrained` is an open_clip tag
    (`weights`: a local file of those), the path of a safetensors file (whose pictures are
    normalised as open_clip does by default), or `none`: random weights, always the same, to try
    things with.
    The residual stream is read after block `block`, and computed in `precision`.
    """

    name: str = "ViT-B-16-quickgelu"
    pretrained: str = "openai"
    weights: str = ""
    block: int = -2
    precision: str = "float32"  # float32 | bfloat16 | auto

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16", "auto"):
            raise ValueError(f"model.precision: {self.precision!r} is not {PRECISIONS}")


@dataclass(frozen=True)
class PicturesConfig:
    """Which pictures, and how many of them a step may use (0: all). `test` names those that
    classification is measured on, where they are others than `spec`'s test split."""

    spec: str = "world"
    test: str = ""
    n_train: int = 0
    n_test: int = 0


@dataclass(frozen=True)
class SAEConfig:
    """The sparse autoencoder (paper eq. 1-2). `k` is read by the TopK activations only."""

    activation: str = "relu"  # relu | topk | batchtopk
    expansion: int = 64
    k: int = 32
    l1: float = 8e-5
    ghost_gradients: bool = True
    b_dec_init: str = "geometric_median"  # geometric_median | mean | zeros
    b_enc_init: float = 0.0
    scale_inputs: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ("relu", "topk", "batchtopk"):
            raise ValueError(f"sae.activation: {self.activation!r} is not relu, topk or batchtopk")
        if self.b_dec_init not in ("geometric_median", "mean", "zeros"):
            raise ValueError(
                f"sae.b_dec_init: {self.b_dec_init!r} is not geometric_median, mean or zeros"
            )
        if not self.l1 >= 0:  # NaN too
            raise ValueError(f"sae.l1: λ must be 0 or more, got {self.l1}")
        if self.expansion < 1 or self.k < 1:
            raise ValueError("sae.expansion and sae.k must be 1 or more")


@dataclass(frozen=True)
class TrainConfig:
    """How it is trained. `cls_share` is the share of CLS tokens in a batch (negative: as in the
    data, one in 197 for ViT-B/16); `dead_after` counts steps without activation; `precision` is
    that of matrix products: bfloat16 doubles the speed where there is hardware for it and is very
    slow where there is none, so `auto` asks the hardware. With few pictures there are fewer than
    `steps`: as many as make `passes` over all tokens (`fit_to`; 0: no such bound)."""

    tokens: str = "all"  # all | cls
    cls_share: float = -1.0
    batch_tokens: int = 128 * 197
    steps: int = 20_480
    passes: float = 0.0
    lr: float = 4e-4
    warmup: int = 500
    dead_after: int = 64
    precision: str = "float32"  # float32 | bfloat16 | auto
    seed: int = 0
    checkpoint_every: int = 1_000

    def __post_init__(self) -> None:
        if self.tokens not in ("all", "cls"):
            raise ValueError(f"train.tokens: {self.tokens!r} is not all or cls")
        if self.precision not in ("float32", "bfloat16", "auto"):
            raise ValueError(f"train.precision: {self.precision!r} is not {PRECISIONS}")
        if self.cls_share > 1:
            raise ValueError(f"train.cls_share: at most 1 of a batch, got {self.cls_share}")
        if not self.lr > 0:
            raise ValueError(f"train.lr must be above 0, got {self.lr}")
        if not self.passes >= 0:
            raise ValueError(f"train.passes must be 0 or more, got {self.passes}")
        if min(self.steps, self.batch_tokens, self.checkpoint_every) < 1 or self.seed < 0:
            raise ValueError(
                "train.steps, batch_tokens and checkpoint_every must be 1 or more, seed 0 or more"
            )


@dataclass(frozen=True)
class PromptsConfig:
    """MaPLe's prompts and their few-shot training (section 4.2; the defaults are MaPLe's own).

    `n_ctx` tokens replace as many words, and are made anew before each of the first `depth`
    blocks, of both encoders or one. `shots` pictures a class; `lr` follows a cosine over `epochs`
    after `warmup_epochs` of `warmup_lr`; `augment` cuts and mirrors pictures at random.
    """

    encoders: str = "both"  # both | text | picture
    n_ctx: int = 2
    depth: int = 9
    shots: int = 16
    epochs: int = 5
    batch: int = 4
    lr: float = 0.0035
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.encoders not in ("both", "text", "picture"):
            raise ValueError(f"prompts.encoders: {self.encoders!r} is not both, text or picture")
        if min(self.n_ctx, self.depth, self.shots, self.epochs, self.batch) < 1:
            raise ValueError("prompts.n_ctx, depth, shots, epochs and batch must be 1 or more")
        if not self.lr > 0 or not self.warmup_lr > 0 or self.warmup_epochs < 0 or self.seed < 0:
            raise ValueError("prompts.lr and warmup_lr must be above 0, the others 0 or more")


@dataclass(frozen=True)
class Profile:
    """Everything a run needs to be repeated.

    `seeds` of the main setting, at least 2; the sweep's settings are trained for `sweep_steps` (0:
    as many as the main one) on `sweep_batch` tokens each (0: likewise); a concept counts that has
    `min_patches` in both halves of the pictures.
    """

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    tasks: tuple[str, ...] = ()
    seeds: int = 3
    sweep_steps: int = 0
    sweep_batch: int = 0
    min_patches: int = 50


T = TypeVar("T")


def _fill(kind: type[T], table: dict[str, Any], where: str) -> T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(known))}")
    for f in fields(kind):  # type: ignore[arg-type]
        value, usual = table.get(f.name, f.default), type(f.default)
        fits = type(value) is usual or (usual is float and type(value) is int)
        if usual in (bool, int, float, str) and not fits:
            raise ValueError(f"{where}: {f.name} = {value!r} is not of type {usual.__name__}")
    return kind(**table)


def profile_names() -> list[str]:
    """The names that `load_profile` knows without a path."""
    return sorted(p.stem for p in CONFIGS.glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile by name or from a TOML file.

    >>> load_profile("paper").sae.expansion
    64

    Raises `ValueError` for an unknown name, table or key, with what is known beside it.
    """
    path = _find(name_or_path)
    table = _table(path)
    kinds = {
        "model": ModelConfig,
        "pictures": PicturesConfig,
        "sae": SAEConfig,
        "train": TrainConfig,
        "prompts": PromptsConfig,
    }
    if not isinstance(table.get("tasks", []), list):
        raise ValueError(f"{path.name}: tasks must be a list, e.g. ['world:land']")
    table["tasks"] = tuple(table.get("tasks", []))
    filled: dict[str, Any] = {
        k: _fill(kinds[k], v, f"{path.name} [{k}]") if k in kinds else v for k, v in table.items()
    }
    return _fill(Profile, {"name": path.stem, **filled}, path.name)


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CONFIGS / f"{name_or_path}.toml"
    if not path.is_file():
        raise ValueError(
            f"no profile {str(name_or_path)!r}: give one of {', '.join(profile_names())}, "
            "or the path of a .toml file"
        )
    return path


def _table(path: Path) -> dict[str, Any]:
    """What a profile's file says, over what its base says. The base is one of ours."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    if "base" not in table:
        return table
    if (base := table.pop("base")) not in profile_names():
        raise ValueError(f"{path.name}: base {base!r} is not one of {', '.join(profile_names())}")
    below = _table(_find(base))
    for key, value in table.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        below[key] = below[key] | value if both else value
    return below


def fit_to(profile: Profile, n_tokens: int) -> Profile:
    """The profile for a training set of so many tokens: no more than `train.passes` over them.

    Where that are fewer steps, `warmup` and `sweep_steps` are reduced in proportion.
    """
    train = profile.train
    most = math.ceil(train.passes * n_tokens / train.batch_tokens)
    if not train.passes or most >= train.steps:
        return profile
    share = most / train.steps
    return replace(
        profile,
        train=replace(train, steps=most, warmup=math.ceil(train.warmup * share)),
        sweep_steps=math.ceil(profile.sweep_steps * share),
    )


def with_pictures(profile: Profile, spec: str) -> Profile:
    """The same profile over other pictures, e.g. `folder:/my/photos`."""
    pictures = replace(profile.pictures, spec=spec, test="")
    return replace(profile, pictures=pictures, tasks=())
