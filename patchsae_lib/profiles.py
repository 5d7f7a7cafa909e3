"""What a run is made of: frozen dataclasses, read from a TOML file.

A profile is a name (`smoke`, `world`, `trial`, `clip`, `paper`) or the path of a TOML file with
the same tables; with `base = "clip"` at its top it says only where it differs from that profile.
The dataclasses' defaults are the paper's values (section 3.1, appendix A.1).
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

CONFIGS = Path(__file__).parent / "configs"
PRECISIONS = ("float32", "bfloat16", "auto")


@dataclass(frozen=True)
class ModelConfig:
    """The CLIP under study.

    `pretrained` is an open_clip tag, the path of a safetensors file (its pictures are normalised
    by open_clip's defaults), or `none` for random weights, the same every time.
    """

    name: str = "ViT-B-16-quickgelu"  #: any open_clip ViT, or `small`: the CLIP in `data/`
    pretrained: str = "openai"
    weights: str = ""  #: a local copy of a tag's file
    block: int = -2  #: the residual stream is read after this block
    precision: str = "float32"  #: of the blocks up to there: float32, bfloat16 or auto

    def __post_init__(self) -> None:
        _check("model", self, precision=PRECISIONS)


@dataclass(frozen=True)
class PicturesConfig:
    """Which pictures to use, and at most how many (0: all)."""

    spec: str = "world"
    test: str = ""  #: whose test split classification is measured on; empty: that of `spec`
    n_train: int = 0
    n_test: int = 0


@dataclass(frozen=True)
class SAEConfig:
    """The sparse autoencoder (paper eqs. 1-2)."""

    activation: str = "relu"  #: relu, topk or batchtopk
    expansion: int = 64  #: d_sae / d_vit
    k: int = 32  #: active latents of a token, if the activation is a TopK
    l1: float = 8e-5  #: λ
    ghost_gradients: bool = True
    b_dec_init: str = "geometric_median"  #: geometric_median, mean or zeros
    b_enc_init: float = 0.0
    scale_inputs: bool = False

    def __post_init__(self) -> None:
        _check("sae", self, activation=("relu", "topk", "batchtopk"), expansion=1, k=1)
        _check("sae", self, b_dec_init=("geometric_median", "mean", "zeros"))
        if not self.l1 >= 0:  # NaN too
            raise ValueError(f"sae.l1: λ must be 0 or more, got {self.l1}")


@dataclass(frozen=True)
class TrainConfig:
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

    def __post_init__(self) -> None:
        _check("train", self, tokens=("all", "cls"), precision=PRECISIONS)
        _check("train", self, frozen=("", "encoder", "decoder"))
        _check("train", self, steps=1, batch_tokens=1, checkpoint_every=1, passes=0, seed=0)
        if self.cls_share > 1:
            raise ValueError(f"train.cls_share: at most 1 of a batch, got {self.cls_share}")
        if not self.lr > 0:
            raise ValueError(f"train.lr must be above 0, got {self.lr}")


@dataclass(frozen=True)
class StatisticsConfig:
    """The constants of what is measured with latents (sections 3.2, 4.1 and 4.2)."""

    #: τ: a latent counts where it writes more than this into a token, in the token's units, as in
    #: the authors' release (unscaled tokens, decoder rows of length 1; eqs. 4-5)
    tau: float = 0.2
    k: int = 10  #: reference images of a latent
    top: int = 50  #: a class's latents of this rank or better are "high"
    bound: int = 100  #: those beyond this rank are "low"
    ks: tuple[int, ...] = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)  #: latents in a mask

    def __post_init__(self) -> None:
        _check("statistics", self, tau=0, k=1, top=1, bound=self.top)
        if not self.ks or self.ks[0] < 1 or list(self.ks) != sorted(set(self.ks)):
            raise ValueError(f"statistics.ks must be growing numbers from 1, got {self.ks}")


@dataclass(frozen=True)
class PromptsConfig:
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

    def __post_init__(self) -> None:
        _check("prompts", self, encoders=("both", "text", "picture"), warmup_epochs=0, seed=0)
        _check("prompts", self, n_ctx=1, depth=1, shots=1, epochs=1, batch=1)
        if not self.lr > 0 or not self.warmup_lr > 0:
            raise ValueError("prompts.lr and prompts.warmup_lr must be above 0")


@dataclass(frozen=True)
class Profile:
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
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):  # it names the folder of the run
            raise ValueError(f"a profile's name is letters, digits, - and _: not {self.name!r}")


def profile_names() -> list[str]:
    """Return the names that `load_profile` knows without a path."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile by name or from a TOML file, which names it unless the file says `name`.

    >>> load_profile("paper").sae.expansion
    64

    Raises `ValueError` for an unknown profile or key (listing the known ones), a value of another
    type or out of range, and a name with other characters.
    """
    path = _find(name_or_path)
    return _fill(Profile, {"name": path.stem, **_tables(path)}, path.name)


def fit_to(profile: Profile, n_tokens: int) -> Profile:
    """Shorten a profile's training to `train.passes` passes over `n_tokens` tokens.

    If that shortens training, `warmup` and `sweep_steps` scale with it.
    """
    train = profile.train
    steps = math.ceil(train.passes * n_tokens / train.batch_tokens)
    if not train.passes or steps >= train.steps:
        return profile
    share = steps / train.steps
    return replace(
        profile,
        train=replace(train, steps=steps, warmup=math.ceil(train.warmup * share)),
        sweep_steps=math.ceil(profile.sweep_steps * share),
    )


def with_pictures(profile: Profile, spec: str) -> Profile:
    """Return the profile with other pictures, e.g. `folder:/my/photos`, and no tasks."""
    return replace(profile, pictures=replace(profile.pictures, spec=spec, test=""), tasks=())


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    path = path if path.suffix == ".toml" else CONFIGS / f"{path}.toml"
    if not path.is_file():
        known = f"{', '.join(profile_names())}, or the path of a .toml file"
        raise ValueError(f"no profile {str(name_or_path)!r}: give one of {known}")
    return path


def _tables(path: Path) -> dict[str, Any]:
    """Read a profile's file, and lay its tables over those of its base, a shipped profile."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    if (base := tables.pop("base", None)) is None:
        return tables
    if base not in profile_names():
        raise ValueError(f"{path.name}: base {base!r} is not one of {', '.join(profile_names())}")
    merged = _tables(_find(base))
    for key, value in tables.items():
        is_table = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if is_table else value
    return merged


def _fill(kind: type, table: Any, where: str) -> Any:
    """Make a dataclass of a TOML table; `where` begins the message of an error."""
    types = get_type_hints(kind)
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table, got {table!r}")
    for key in sorted(table.keys() - types.keys()):
        raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(types))}")
    return kind(**{key: _value(types[key], value, where, key) for key, value in table.items()})


def _value(kind: Any, value: Any, where: str, key: str) -> Any:
    """Check a value of a TOML table against the type of its field; a list becomes a tuple."""
    if is_dataclass(kind):
        return _fill(kind, value, f"{where} [{key}]")  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, list):
            raise ValueError(f"{where}: {key} must be a list of {item.__name__}, got {value!r}")
        return tuple(_value(item, entry, where, key) for entry in value)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{where}: {key} = {value!r} is not of type {kind.__name__}")
    return value


def _check(section: str, config: Any, **rules: int | tuple[str, ...]) -> None:
    """Check fields of a config: a rule is the smallest value allowed, or all the values."""
    for name, rule in rules.items():
        value = getattr(config, name)
        if isinstance(rule, int) and not value >= rule:  # NaN too
            raise ValueError(f"{section}.{name} must be {rule} or more, got {value}")
        if isinstance(rule, tuple) and value not in rule:
            *first, last = rule
            raise ValueError(f"{section}.{name}: {value!r} is not {', '.join(first)} or {last}")
