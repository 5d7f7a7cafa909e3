"""CLIPs in open_clip's format: weights and a configuration in, a `SplitCLIP` out.

`load_clip` is the way in. The small CLIP of the embedded world has the same format, with a
tokenizer of whole words.
"""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import QuickGELU
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchsae_lib.artefacts import DATA, atomic_path
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.distributed import resolve_precision
from patchsae_lib.interop.files import listed, read_by_content, read_json, tensor_shapes
from patchsae_lib.profiles import ModelConfig

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
NORMS = {  # mean and std of preprocessing
    "OpenAI's": ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "no": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
Facts = dict[str, Any]  # mean, std, quick_gelu and more of weights, as open_clip writes them
MAKE_SMALL_CLIP = "run `python -m recipes.small_clip`"


def load_clip(
    config: ModelConfig, device: str | torch.device = "cpu", data: Path = DATA
) -> SplitCLIP:
    """Load the CLIP of a profile onto `device`: float32, in eval mode, frozen.

    `config.name` is `small` (read from `data/small_clip/`) or an open_clip ViT, whose
    `config.pretrained` is an open_clip tag or a safetensors file. With `pretrained` = `none` both
    have random weights, the same every time. Nothing is unpickled, and only a tag's file is
    downloaded, unless the Hugging Face cache has it. If `config.precision` resolves to bfloat16,
    the blocks up to the hook compute tokens in it: twice as fast on hardware that supports it, and
    1 % off.

    Raises `ValueError` for a model or weights that do not fit, `FileNotFoundError` if the weights
    are missing.
    """
    small = config.name == "small"
    place = data / "small_clip", config.block, config.pretrained == "none"
    clip = load_small_clip(*place) if small else _load_open_clip(config)
    if resolve_precision(config.precision, torch.device(device)) == "bfloat16":
        clip = clip.in_bfloat16()
    return clip.to(device)


def _load_open_clip(config: ModelConfig) -> SplitCLIP:
    gelu = _model_cfg(config.name).get("quick_gelu", False)
    tag = open_clip.get_pretrained_cfg(config.name, config.pretrained)
    known = {f"the tag {config.pretrained!r}": tag} if tag else {}
    preprocess = _agreed(config.name, gelu, known)  # before anything is downloaded
    # Given a tag, open_clip falls back to a pickle where there is no safetensors file.
    weights = None if config.pretrained == "none" else _weights_file(config)
    if weights:
        known |= _said_beside(config.name, weights)
        preprocess = _agreed(config.name, gelu, known)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(config.name, force_preprocess_cfg=preprocess)
    if weights:
        if not known:
            warnings.warn(
                f"{weights} does not say its mean, std and GELU: OpenAI's and {config.name}'s are "
                "taken. Write its tag as model.pretrained and this path as model.weights, or put "
                f"{CONFIG_FILE} beside it",
                stacklevel=3,
            )
        readers: dict[str, Callable[[Path], None]] = {"torch": _no_pickle}
        readers["safetensors"] = partial(_copy_weights, model, config.name)
        read_by_content(weights, readers, f"{config.name} as safetensors, of open_clip")
    tokenizer = open_clip.get_tokenizer(config.name)
    return SplitCLIP(model.eval().requires_grad_(False), tokenizer, config.block)


def _copy_weights(model: nn.Module, name: str, path: Path) -> None:
    """Copy the weights in a file into a model. open_clip would resize what does not fit.

    Raises `ValueError` for another model's, naming the first tensor that is of another shape.
    """
    fault, shapes = f"{path} does not hold the weights of {name}", tensor_shapes(path)
    if any(key.startswith(("vision_model.", "text_model.")) for key in shapes):
        raise ValueError(f"{path} is transformers' file: take {WEIGHTS_FILE} of the same weights")
    for key, expected in model.state_dict().items():
        shape = shapes.get(key, tuple(expected.shape))
        if shape != tuple(expected.shape) and math.prod(shape) + expected.numel() > 2:
            right = tuple(expected.shape)
            raise ValueError(f"{fault}: {key} is {shape}, expected {right}: of which model?")
    try:
        open_clip.load_checkpoint(model, str(path))
    except RuntimeError as error:
        raise ValueError(f"{fault}: it has {listed(shapes)}") from error


def _no_pickle(path: Path) -> None:
    raise ValueError(f"{path} is a pickle: take the same weights as .safetensors")


def _said_beside(model: str, weights: Path) -> dict[str, Facts]:
    """Return what open_clip's configuration beside weights says of them, and what is known of the
    tags of the model that their path names, by who says it."""
    known, beside = {}, weights.with_name(CONFIG_FILE)
    if beside.is_file():
        model_cfg, facts = (_table(beside, key) for key in ("model_cfg", "preprocess_cfg"))
        for key in {"mean", "std"} & facts.keys():
            if not isinstance(facts[key], list) or len(facts[key]) != 3:
                raise ValueError(f"{beside}: {key} is {facts[key]!r}, expected three numbers")
        known[str(beside)] = {**facts, "quick_gelu": model_cfg.get("quick_gelu", False)}
    model = model.removesuffix("-quickgelu")
    for name in open_clip.list_pretrained_tags_by_model(model):
        facts = open_clip.get_pretrained_cfg(model, name)
        repo = (facts.get("hf_hub") or "none").rstrip("/")
        is_cached = f"models--{repo.replace('/', '--')}" in weights.parts
        if is_cached or re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", weights.name.lower()):
            known[f"the path {weights}, of the tag {name!r},"] = facts
    return known


def _table(path: Path, key: str) -> Facts:
    """Return a part of open_clip's configuration, {} if it has none."""
    table = read_json(path).get(key)
    return table if isinstance(table, dict) else {}


def _agreed(model: str, gelu: bool, known: Mapping[str, Facts]) -> Facts:
    """Return what all say of weights, in open_clip's words.

    Raises `ValueError` if two differ, or the model has another GELU.
    """
    agreed: Facts = {}
    for source, facts in known.items():
        if bool(facts.get("quick_gelu")) != gelu:
            raise ValueError(
                f"{model} and {source} differ in their GELU: "
                "add -quickgelu to the model's name, or remove it"
            )
        for key in {"mean", "std"} & facts.keys() & agreed.keys():
            if list(facts[key]) != list(agreed[key]):
                raise ValueError(f"{model}: {source} has another {key} than {next(iter(known))}")
        agreed = {**facts, **agreed}
    return agreed


def _model_cfg(name: str) -> dict[str, Any]:
    """Return open_clip's description of a model, if both of its towers are open_clip's own."""
    if name not in open_clip.list_models():  # which also keeps out hf-hub: and local-dir: names
        raise ValueError(f"no model {name!r}: give small or one of open_clip.list_models()")
    cfg: dict[str, Any] = open_clip.get_model_config(name)
    if "timm_model_name" in cfg["vision_cfg"] or isinstance(cfg["vision_cfg"]["layers"], list):
        raise ValueError(
            f"{name}: the image tower is a timm model or a ResNet, not open_clip's "
            "VisionTransformer; choose another one, e.g. ViT-B-16-quickgelu"
        )
    if "hf_tokenizer_name" in cfg["text_cfg"]:
        raise ValueError(f"{name}: its tokenizer is downloaded by transformers: not supported")
    return cfg


def weights_place(config: ModelConfig) -> tuple[str, Path | None]:
    """Return the repository of the Hub that the weights of a profile's open_clip model come from,
    "" for a file of the reader's or random numbers, and their path, if they are on this machine.
    Nothing is downloaded. Raises `ValueError` for a model or weights that are not known."""
    _model_cfg(config.name)
    if config.pretrained == "none":
        return "", None
    tag = open_clip.get_pretrained_cfg(config.name, config.pretrained)
    if not tag and not config.pretrained.endswith(".safetensors"):
        tags = listed(open_clip.list_pretrained_tags_by_model(config.name)) or "it has none"
        raise ValueError(
            f"model.pretrained: {config.pretrained!r} is neither a .safetensors file nor a tag of "
            f"{config.name} ({tags})"
        )
    if local := config.weights if tag else config.pretrained:
        path = Path(local).expanduser()
        return "", path if path.is_file() else None
    repo = tag["hf_hub"].rstrip("/")
    cached = try_to_load_from_cache(repo, WEIGHTS_FILE)
    return repo, Path(cached) if isinstance(cached, str) else None


def weights_size(name: str) -> float:
    """Return the bytes of an open_clip model's weights in float32."""
    config = _model_cfg(name)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):  # which holds no numbers
        return 4.0 * sum(p.numel() for p in kind(**config).parameters())


def with_other_gelu(clip: SplitCLIP) -> SplitCLIP:
    """Return a copy of a CLIP with GELU in place of QuickGELU, or the reverse."""
    model = copy.deepcopy(clip.model)
    for module in model.modules():
        if isinstance(gelu := getattr(module, "gelu", None), (QuickGELU, nn.GELU)):
            module.gelu = nn.GELU() if isinstance(gelu, QuickGELU) else QuickGELU()
    return SplitCLIP(model, clip.tokenizer, clip.block)


def other_pixels(clip: SplitCLIP, images: Tensor) -> dict[str, Tensor]:
    """Preprocess images, that were preprocessed for a CLIP, as others do, by name."""
    pixels = images.to(clip.mean) * clip.std + clip.mean
    made = {"with red and blue exchanged": (pixels.flip(1) - clip.mean) / clip.std}
    for name, (mean, std) in NORMS.items():
        m, s = (torch.tensor(x).view(-1, 1, 1).to(pixels) for x in (mean, std))
        if not all(torch.allclose(*x, atol=0.01) for x in ((m, clip.mean), (s, clip.std))):
            made[f"with {name} mean and std"] = (pixels - m) / s
    return made


def _weights_file(config: ModelConfig) -> Path:
    """Return the safetensors file that `config.pretrained` means, downloaded if need be."""
    repo, path = weights_place(config)
    if path is None and not repo:
        key = "weights" if config.weights else "pretrained"
        raise FileNotFoundError(f"model.{key}: no file {getattr(config, key)}")
    return path or Path(_download(config, repo))


def _download(config: ModelConfig, repo: str) -> str:
    """Download the weights in a repository of the Hub and return their path."""
    try:
        size = hf_hub_download(repo, WEIGHTS_FILE, dry_run=True).file_size or 0
        print(f"downloading {repo}/{WEIGHTS_FILE} ({size / 1e6:.0f} MB)")
        return hf_hub_download(repo, WEIGHTS_FILE)
    except OSError as error:  # the Hub's errors are kinds of it
        raise FileNotFoundError(
            f"the weights {config.pretrained!r} of {config.name} are not in Hugging Face's cache "
            f"and cannot be downloaded. Download https://huggingface.co/{repo}/resolve/main/"
            f"{WEIGHTS_FILE} elsewhere, and write the path of that file as model.weights in the "
            "profile (or pretrained = 'none', to try things with random weights)"
        ) from error


# --- the small CLIP ----------------------------------------------------------------------------


class WordTokenizer:
    """Tokenizer of whole words, without case and punctuation, for the small CLIP.

    Id 0 is padding, then come the `words` in order, the start and the end of a text. The end has
    the largest id because open_clip reads a text's features at the position of the largest id.

    >>> WordTokenizer(["a", "cat"], context_length=5)("A cat.").tolist()
    [[3, 1, 2, 4, 0]]

    Raises `ValueError` for a word that is given twice, or that no text could contain.
    """

    def __init__(self, words: Sequence[str], context_length: int = 32) -> None:
        for word in words:
            if _split(word) != [word] or words.count(word) > 1:
                raise ValueError(f"{word!r} is given twice, or not lower case, or has punctuation")
        self.words, self.context_length = list(words), context_length
        self.ids = {word: i for i, word in enumerate(words, start=1)}
        self.vocab_size = len(words) + 3
        self.start, self.end = self.vocab_size - 2, self.vocab_size - 1

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Return the ids (n, context_length) of n texts.

        Raises `ValueError` for a word outside the vocabulary or a text that is too long.
        """
        texts = [texts] if isinstance(texts, str) else texts
        ids = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            words = _split(text)
            if unknown := [word for word in words if word not in self.ids]:
                raise ValueError(f"the small CLIP does not know the word {unknown[0]!r}: {text!r}")
            if len(words) > self.context_length - 2:
                raise ValueError(f"more than {self.context_length - 2} words in {text!r}")
            encoded = [self.start, *(self.ids[word] for word in words), self.end]
            row[: len(encoded)] = torch.tensor(encoded)
        return ids


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def small_clip_config(words: Sequence[str]) -> dict[str, Any]:
    """Return the architecture of the small CLIP, in the layout of open_clip's own file."""
    vision = {"image_size": 112, "patch_size": 8, "width": 192, "layers": 6, "head_width": 64}
    text = {"context_length": 32, "vocab_size": len(words) + 3, "width": 128, "heads": 4}
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {**vision, "mlp_ratio": 4.0},
            "text_cfg": {**text, "layers": 3},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }


def create_small_clip(config: dict[str, Any]) -> open_clip.CLIP:
    """Make the CLIP that `config` (see `small_clip_config`) describes, with random weights."""
    model = open_clip.CLIP(**config["model_cfg"])
    overlay = {"size": model.visual.image_size, **config["preprocess_cfg"]}
    set_model_preprocess_cfg(model, merge_preprocess_dict(PreprocessCfg(), overlay))
    return model


def save_small_clip(
    directory: str | Path, model: nn.Module, config: dict[str, Any], words: Sequence[str]
) -> None:
    """Write the weights (float16) and the configuration with the words; open_clip reads both.

    Raises `ValueError` for words that the tokenizer refuses, or more or fewer than `config` has.
    """
    if config["model_cfg"]["text_cfg"]["vocab_size"] != WordTokenizer(words).vocab_size:
        raise ValueError(f"the configuration was made for other words than these {len(words)}")
    state = {name: x.detach().half().cpu().contiguous() for name, x in model.state_dict().items()}
    with atomic_path(Path(directory) / WEIGHTS_FILE) as path:
        save_file(state, path)
    with atomic_path(Path(directory) / CONFIG_FILE) as path:
        path.write_text(json.dumps({**config, "words": list(words)}, indent=1) + "\n", "utf-8")


def load_small_clip(directory: str | Path, block: int = -2, untrained: bool = False) -> SplitCLIP:
    """Load what `save_small_clip` wrote: float32, in eval mode, frozen, on the CPU. `untrained`
    gives it random weights instead, the same every time.

    Raises `FileNotFoundError` if a file is missing, `ValueError` if the two do not fit.
    """
    config_path, weights = Path(directory) / CONFIG_FILE, Path(directory) / WEIGHTS_FILE
    for path in (config_path, weights):
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: {MAKE_SMALL_CLIP}")
    config = json.loads(config_path.read_text(encoding="utf-8"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_small_clip(config)
    try:
        if not untrained:
            model.load_state_dict(load_file(weights))  # copies into the float32 parameters
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{weights} does not fit {CONFIG_FILE}: {MAKE_SMALL_CLIP}") from error
    tokenizer = WordTokenizer(config["words"], model.context_length)
    return SplitCLIP(model.eval().requires_grad_(False), tokenizer, block)
