"""What a run is made of: frozen dataclasses, read from a TOML file.

A profile is a name (`smoke`, `world`, `trial`, `clip`, `paper`) or the path of a TOML file with
the same tables; with `base = "clip"` at its top it says only where it differs from that profile.
Relative paths in it begin at its folder. The dataclasses' defaults are the paper's values (section
3.1, appendix A.1).
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from patchsae_lib.parameters import absolute

CONFIGS = Path(__file__).parent / "configs"
LIMIT, BIG = 10**9, 1e300  # of any int: torch refuses larger seeds; of a float, to be finite
EPS = math.ulp(0.0)  # the smallest number above 0

# By field, of a number the smallest value (else 0), or that and the largest; of a text all values.
RULES: dict[str, Any] = {
    "precision": ("float32", "bfloat16", "auto"), "activation": ("relu", "topk", "batchtopk"),
    "b_dec_init": ("geometric_median", "mean", "zeros"), "frozen": ("", "encoder", "decoder"),
    "encoders": ("both", "text", "picture"), "tokens": ("all", "cls"), "seeds": 2, "block": -LIMIT,
    "cls_share": (-BIG, 1), "b_enc_init": -BIG, "momentum": (0, 1), "lr": EPS, "warmup_lr": EPS,
    **dict.fromkeys(("expansion", "k", "steps", "batch_tokens", "dead_after", "top", "depth"), 1),
    **dict.fromkeys(("n_ctx", "shots", "epochs", "batch", "checkpoint_every", "min_patches"), 1),
}  # fmt: skip


class Checked:
    """A part of a profile, whose values obey `RULES`, `LIMIT` and `BIG`: else a `ValueError`."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for name, value in vars(self).items():
            expected, rule = "", RULES.get(name, 0)
            if isinstance(value, (int, float)):
                ends = (rule, LIMIT if type(value) is int else BIG)
                low, high = rule if isinstance(rule, tuple) else ends
                if not low <= value <= high:  # NaN too
                    least = "above 0" if low == EPS else f"{low} or more"
                    expected = f"{high} or less" if value > high else least
            elif rule and value not in rule:
                expected = " or ".join(map(repr, rule))
            if expected:
                raise ValueError(f"{section}.{name} must be {expected}, got {value!r}")


def _require_growing(name: str, sizes: tuple[int, ...]) -> None:
    if list(sizes) != sorted({size for size in sizes if size >= 1}):
        raise ValueError(f"{name} must be growing numbers from 1, got {sizes}")


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The CLIP under study.

    `pretrained` is an open_clip tag, the path of a safetensors file (with open_clip's own
    configuration beside it, if it is no tag's), or `none` for random weights, the same every time.
    """

    name: str = "ViT-B-16-quickgelu"  #: any open_clip ViT, or `small`: the CLIP in `data/`
    pretrained: str = "openai"
    weights: str = ""  #: a local copy of a tag's file
    block: int = -2  #: the residual stream is read after this block
    precision: str = "float32"  #: of the blocks up to there: float32, bfloat16 or auto


@dataclass(frozen=True)
class PicturesConfig(Checked):
    """Which pictures to use, and at most how many (0: all)."""

    spec: str = "world"
    test: str = ""  #: whose test split classification is measured on; empty: that of `spec`
    n_train: int = 0
    n_test: int = 0


@dataclass(frozen=True)
class SAEConfig(Checked):
    """The sparse autoencoder (paper eqs. 1-2)."""

    activation: str = "relu"  #: relu, topk or batchtopk
    expansion: int = 64  #: d_sae / d_vit
    k: int = 32  #: active latents of a token, if the activation is a TopK
    l1: float = 8e-5  #: λ
    ghost_gradients: bool = True
    b_dec_init: str = "geometric_median"  #: geometric_median, mean or zeros
    b_enc_init: float = 0.0
    scale_inputs: bool = False
    nested: tuple[int, ...] = ()  #: latents of the smaller dictionaries in it (Matryoshka)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_growing("sae.nested", self.nested)


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How the autoencoder is trained (section 3.1)."""

    tokens: str = "all"  #: all or cls
    frozen: str = ""  #: encoder or decoder, to stay as it is drawn at random: a control
    cls_share: float = -1.0  #: of CLS tokens in a batch; negative: as in the data
    batch_tokens: int = 128 * 197
    steps: int = 20_480
    passes: float = 0.0  #: over all tokens, at most: fewer steps if need be (0: no limit)
    lr: float = 4e-4
    warmup: int = 500
    dead_after: int = 64  #: steps without activation
    precision: str = "float32"  #: of products; bfloat16 needs hardware, for which auto looks
    seed: int = 0
    checkpoint_every: int = 1_000


@dataclass(frozen=True)
class StatisticsConfig(Checked):
    """The constants of what is measured with latents (sections 3.2, 4.1 and 4.2)."""

    #: τ: a latent counts where it writes more than this into a token, in the token's units, as in
    #: the authors' release (unscaled tokens, decoder rows of length 1; eqs. 4-5)
    tau: float = 0.2
    k: int = 10  #: reference images of a latent
    top: int = 50  #: a class's latents of this rank or better are "high"
    bound: int = 100  #: those beyond this rank are "low"
    ks: tuple[int, ...] = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)  #: latents in a mask

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound < self.top:
            raise ValueError(f"statistics.bound must be {self.top} or more, got {self.bound}")
        _require_growing("statistics.ks", self.ks or (0,))


@dataclass(frozen=True)
class PromptsConfig(Checked):
    """MaPLe's prompts and their few-shot training (section 4.2; the defaults are MaPLe's own)."""

    encoders: str = "both"  #: both, text or picture
    n_ctx: int = 2  #: context tokens, in place of as many words
    depth: int = 9  #: blocks before which they are replaced
    shots: int = 16  #: pictures per class
    epochs: int = 5
    batch: int = 4
    lr: float = 0.0035  #: follows a cosine after the warm-up
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = True  #: crop and mirror pictures at random
    seed: int = 0


@dataclass(frozen=True)
class TuningConfig(Checked):
    """Few-shot training of a picture tower's weights, beside prompts (not in the paper)."""

    rank: int = 4  #: of LoRA's maps; 0: every weight is learnt
    shots: int = 16  #: pictures per class
    epochs: int = 10
    batch: int = 8
    lr: float = 1e-3  #: of AdamW; follows a cosine after the warm-up
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    weight_decay: float = 0.01
    augment: bool = True  #: crop and mirror pictures at random
    seed: int = 0


@dataclass(frozen=True)
class Profile(Checked):
    """Everything needed to repeat a run. The name is letters, digits, `-` and `_`."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    tasks: tuple[str, ...] = ()
    seeds: int = 3  #: of the main setting, at least 2
    sweep_steps: int = 0  #: of each setting of the sweep; 0: as many as the main one
    sweep_batch: int = 0  #: tokens; 0: as the main one
    min_patches: int = 50  #: a concept counts if each half of the pictures has so many

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,99}", self.name):  # it names the folder of the run
            raise ValueError(f"a profile's name is letters, digits, - and _: not {self.name!r}")


def profile_names() -> list[str]:
    """Return the names that `load_profile` knows without a path."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile by name or from a TOML file, which names it unless the file says `name`.

    >>> load_profile("paper").sae.expansion
    64

    Raises `ValueError`, with the path, for what is no TOML, an unknown profile or key (listing the
    known ones), a value of another type or out of range, and a name with other characters.
    """
    path = _find(name_or_path)
    try:
        start = "" if path.parent == CONFIGS else str(path.parent)
        return _typed(Profile, {"name": path.stem, **_tables(path)}, "", start)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def fit_to(profile: Profile, n_tokens: int) -> Profile:
    """Shorten a profile's training, with its `warmup` and `sweep_steps`, to `train.passes` passes
    over `n_tokens` tokens, if it has more."""
    train = profile.train
    steps = math.ceil(train.passes * n_tokens / train.batch_tokens)
    if not train.passes or steps >= train.steps:
        return profile
    share = steps / train.steps
    train = replace(train, steps=steps, warmup=math.ceil(train.warmup * share))
    return replace(profile, train=train, sweep_steps=math.ceil(profile.sweep_steps * share))


def with_pictures(profile: Profile, spec: str) -> Profile:
    """Return the profile with other pictures, e.g. `folder:/my/photos`, and no tasks."""
    return replace(profile, pictures=replace(profile.pictures, spec=spec, test=""), tasks=())


def _find(name_or_path: str | Path) -> Path:
    path = Path(str(name_or_path)).expanduser()
    path = path if path.suffix.lower() == ".toml" else CONFIGS / f"{path}.toml"
    if not path.is_file():
        known = f"{', '.join(profile_names())}, or the path of a .toml file"
        raise ValueError(f"no profile {str(name_or_path)!r}: give one of {known}")
    return path


def _tables(path: Path) -> dict[str, Any]:
    """Read a profile's file, and lay its tables over those of its base, a shipped profile."""
    tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    if (base := tables.pop("base", None)) is None:
        return tables
    if base not in profile_names():
        raise ValueError(f"base {base!r} is not one of {', '.join(profile_names())}")
    merged = _tables(_find(base))
    for key, value in tables.items():
        is_table = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if is_table else value
    return merged


def _typed(kind: Any, value: Any, name: str, start: str) -> Any:
    """Make of a value in TOML what a field of this type holds: a table becomes a dataclass, a list
    a tuple, a relative path an absolute one below `start` (unless ""). `name` is for errors."""
    if is_dataclass(kind):
        types = get_type_hints(kind)
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be a table, got {value!r}")
        named = {key: f"{name}.{key}".lstrip(".") for key in value}
        for key in sorted(value.keys() - types.keys()):
            raise ValueError(f"unknown key {named[key]!r}; known are {', '.join(sorted(types))}")
        fields = {key: _typed(types[key], v, named[key], start) for key, v in value.items()}
        return kind(**fields)  # type: ignore[operator]
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_typed(get_args(kind)[0], entry, name, start) for entry in value)
    if type(value) is not kind and not (kind is float and type(value) is int):
        expected = "a list" if get_origin(kind) is tuple else kind.__name__
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return absolute(value, start) if start and kind is str else value
