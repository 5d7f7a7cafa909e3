"""CLIP cut in two at the residual stream, and the zero-shot head (paper section 3).

    images ── tokens ──▶ z (images, 1 + n_patches, d_vit) ── features ──▶ (images, d_embed)

The autoencoder reads and replaces z; the second half turns it into a class again.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.profiles import ModelConfig
from patchsae_lib.world.tasks import STYLE_TEMPLATES

DATA = Path(__file__).parents[1] / "data"
CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"

P = ParamSpec("P")
T = TypeVar("T")
Template = str | Callable[[str], str]
Tokenizer = Callable[[list[str]], Tensor]

# The 80 prompts of the paper's zero-shot classifier (section 4.1).
OPENAI_TEMPLATES: tuple[Template, ...] = open_clip.OPENAI_IMAGENET_TEMPLATES
# The media that the embedded world draws in; its captions say "a" before every noun.
WORLD_TEMPLATES: tuple[Template, ...] = STYLE_TEMPLATES


def templates_for(config: ModelConfig) -> tuple[Template, ...]:
    """The prompts of the zero-shot classifier: the world's for the small CLIP, else OpenAI's."""
    return WORLD_TEMPLATES if config.name == "small" else OPENAI_TEMPLATES


class SplitCLIP(nn.Module):
    """An open_clip CLIP with a ViT image tower, cut after block `block` (paper section 3.1).

    `features(tokens(x))` equals `model.encode_image(x, normalize=True)`. The model is used as it
    is: `load_clip` puts it in eval mode and freezes it, the constructor does not.

    Attributes: `grid` (rows, columns of patches), `n_tokens` (1 + n_patches), `d_vit`, `d_embed`,
    `n_blocks`, `block` (counted from 0, also when a negative one was given) and `logit_scale`.
    `n_prompts` is 0: an adapted model (`maple.adapt`) has that many more tokens after its patches.
    `first`: copies in bfloat16 of the blocks up to the hook, if any; they make the tokens unless
    gradients are wanted.

    Raises `TypeError` for an image tower that is no open_clip ViT and `ValueError` for one that
    does not pool its tokens, or a block that it does not have.
    """

    mean: Tensor
    std: Tensor
    n_prompts = 0

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        block: int = -2,
        first: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        self.first = first
        self.model: Any = model  # CLIP, CustomTextCLIP or CoCa, which have no common base class
        self.tokenizer = tokenizer
        visual = self.visual
        if not isinstance(visual, VisionTransformer):
            raise TypeError(
                f"the image tower is a {type(visual).__name__}, not open_clip's "
                "VisionTransformer; choose another one, e.g. ViT-B-16-quickgelu"
            )
        if visual.pool_type == "none":
            raise ValueError("the image tower does not pool its tokens (pool_type 'none')")
        self.n_blocks = len(visual.transformer.resblocks)
        if not -self.n_blocks <= block < self.n_blocks:
            raise ValueError(f"block {block}: the image tower has {self.n_blocks} blocks")
        self.block = block % self.n_blocks
        self.grid: tuple[int, int] = visual.grid_size
        self.n_tokens = 1 + self.grid[0] * self.grid[1]
        self.d_vit: int = visual.transformer.width
        self.d_embed: int = visual.output_dim
        self.preprocess_cfg = PreprocessCfg(**getattr(visual, "preprocess_cfg", {}))
        device = visual.class_embedding.device
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.preprocess_cfg, name)).view(-1, 1, 1)
            self.register_buffer(name, values.to(device), persistent=False)

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.visual

    @property
    def logit_scale(self) -> float:
        """The factor between a cosine similarity and a logit (1 / temperature)."""
        return self.model.logit_scale.detach().exp().item()

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Pictures (b, 3, h, w), uint8 of any size, as float images on the model's device.

        Like open_clip's transform for PIL images: the shorter side is resized (antialiased,
        bicubic unless the weights say otherwise), the centre cut out, each channel normalised.
        Within 2 of 255 levels of that transform, but for sharp edges next to black or white:
        there bicubic overshoots, and Pillow and torch (CPU, GPU) clip it at different moments.
        """
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(
                "preprocess expects uint8 pictures (b, 3, h, w), "
                f"got {pictures.dtype} {tuple(pictures.shape)}"
            )
        cfg, target = self.preprocess_cfg, list(self.visual.image_size)
        pictures = pictures.to(self.mean.device)
        if list(pictures.shape[-2:]) != target:
            # One number scales the shorter side, two squash the picture (some CLIPs of open_clip).
            size = target if cfg.resize_mode == "squash" else target[:1]
            pictures = resize(pictures, size, InterpolationMode(cfg.interpolation), antialias=True)
            pictures = center_crop(pictures, target)
        return (pictures / 255 - self.mean) / self.std

    def tokens(self, images: Tensor) -> Tensor:
        """The residual tokens z (b, 1 + n_patches + n_prompts, d_vit) of preprocessed images
        (b, 3, h, w); those of prompts come last."""
        expected = (3, *self.visual.image_size)
        if tuple(images.shape[1:]) != expected or not images.is_floating_point():
            raise ValueError(
                f"tokens expects float images (b, *{expected}), got {images.dtype} "
                f"{tuple(images.shape)}: call preprocess first"
            )
        return self._run(self._embed(images), 0, self.block + 1)

    def neurons(self, images: Tensor) -> Tensor:
        """The MLP's neurons (b, 1 + n_patches, width) of the last block before the hook, after
        their nonlinearity, of preprocessed images (b, 3, h, w)."""
        blocks: Any = self.first or self.visual.transformer.resblocks
        mlp = blocks[self.block].mlp
        if not hasattr(mlp, "gelu"):
            raise TypeError(f"the MLP of block {self.block} is no plain one: {mlp}")
        seen: list[Tensor] = []
        hook = mlp.gelu.register_forward_hook(lambda _module, _input, output: seen.append(output))
        try:
            self.tokens(images)
        finally:
            hook.remove()
        x = seen[0].float()
        return x if self.visual.transformer.batch_first else x.transpose(0, 1)

    def features(self, z: Tensor) -> Tensor:
        """The image features (b, d_embed), unit norm, of what `tokens` gives."""
        expected = (self.n_tokens + self.n_prompts, self.d_vit)
        if tuple(z.shape[1:]) != expected:
            raise ValueError(f"features expects z (b, *{expected}), got {tuple(z.shape)}")
        last = max(self.block + 1, self.n_blocks - 1)
        x = self._run(z, self.block + 1, last)
        x = self._cls_of_last_block(x) if self._only_cls_leaves(last) else self._run(x, last)
        return F.normalize(self.visual._pool(x)[0] @ self.visual.proj, dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """The features (n, d_embed), unit norm, of n texts as the tokenizer's ids."""
        return self.model.encode_text(ids, normalize=True)

    def classify(self, z: Tensor, text_features: Tensor) -> Tensor:
        """Logits (b, c) of residual tokens for text features (c, d_embed): scaled cosines."""
        return self.logit_scale * self.features(z) @ text_features.T

    def text_features(
        self, class_names: Sequence[str], templates: Sequence[Template], batch: int = 512
    ) -> Tensor:
        """The zero-shot head (c, d_embed), on the CPU: the mean over templates, unit norm again.

        Deviation: the authors leave the mean as it is, so that a class whose prompts disagree
        gets smaller logits; open_clip normalises it, and so do we.
        """
        if not class_names or not templates:
            raise ValueError("text_features needs at least one class name and one template")
        prompts = [t.format if isinstance(t, str) else t for t in templates]
        ids = self.tokenizer([prompt(name) for name in class_names for prompt in prompts])
        with torch.no_grad(), fastest(self) as device:
            x = torch.cat([self.encode_text(part.to(device)) for part in ids.split(batch)])
            return F.normalize(x.unflatten(0, (-1, len(prompts))).mean(dim=1), dim=-1).cpu()

    def _only_cls_leaves(self, last: int) -> bool:
        """Whether there is a last block to run, and what is pooled is its CLS token alone."""
        visual = self.visual
        plain = visual.pool_type == "tok" and visual.attn_pool is None
        return plain and [type(b) for b in visual.transformer.resblocks[last:]] == [
            ResidualAttentionBlock
        ]

    def _cls_of_last_block(self, x: Tensor) -> Tensor:
        """The CLS token (b, 1, d_vit) after the last block, of x (b, t, d_vit): a sixth of the
        block's operations, since the other tokens need keys and values only."""
        block, first = self.visual.transformer.resblocks[-1], self.visual.transformer.batch_first
        x = self._enter(x, self.n_blocks - 1)
        h, cls = block.ln_1(x), x[:, :1]
        q, kv = (h[:, :1], h) if first else (h[:, :1].transpose(0, 1), h.transpose(0, 1))
        mixed = block.attn(q, kv, kv, need_weights=False)[0]
        cls = cls + block.ls_1(mixed if first else mixed.transpose(0, 1))
        return cls + block.ls_2(block.mlp(block.ln_2(cls)))

    def _embed(self, images: Tensor) -> Tensor:
        """What the first block gets (b, 1 + n_patches + n_prompts, d_vit)."""
        return self.visual._embeds(images)

    def _enter(self, x: Tensor, _block: int) -> Tensor:
        """What a block gets in place of x: an adapted model puts its prompts in here."""
        return x

    def _run(self, x: Tensor, start: int, stop: int | None = None) -> Tensor:
        """x (b, t, d_vit) after the blocks from `start` up to, not including, `stop`."""
        transformer, dtype = self.visual.transformer, x.dtype
        copies = 0 if self.first is None or x.requires_grad else len(self.first)
        for i in range(self.n_blocks)[start:stop]:
            x = self._enter(x, i)
            x = x if transformer.batch_first else x.transpose(0, 1)
            if self.first is not None and i < copies:
                x = self.first[i](x.bfloat16())
            else:
                x = transformer.resblocks[i](x.to(dtype))
            x = x if transformer.batch_first else x.transpose(0, 1)
        return x.to(dtype)


def precision(wanted: str, device: torch.device) -> str:
    """`float32` or `bfloat16`: what `auto` means on a device."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        fast = has.get("avx512_bf16") or has.get("amx_bf16")
    return "bfloat16" if fast else "float32"


def accelerated(function: Callable[P, T]) -> Callable[P, T]:
    """A function that runs with those of its arguments that are modules on the GPU, if there is
    one."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        given = (*args, *kwargs.values())
        with fastest(*(x for x in given if isinstance(x, nn.Module))):
            return function(*args, **kwargs)

    return run


@contextmanager
def fastest(*modules: nn.Module) -> Iterator[torch.device]:
    """Modules on the GPU, if there is one, for as long as the block lasts; gives their device.

    Modules that are on a GPU already stay on theirs.
    """
    places = [next(module.parameters()).device for module in modules]
    device = next((place for place in places if place.type != "cpu"), best_device())
    try:
        for module in modules:
            module.to(device)
        yield device
    finally:
        for module, place in zip(modules, places, strict=True):
            module.to(place)


def best_device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@accelerated
@torch.no_grad()
def predict(clip: SplitCLIP, pictures: Tensor, text_features: Tensor, batch: int = 64) -> Tensor:
    """Logits (n, c), on the CPU, of uint8 pictures (n, 3, h, w)."""
    z = (clip.tokens(clip.preprocess(part)) for part in pictures.split(batch))
    text = text_features.to(clip.mean.device)
    return torch.cat([clip.classify(part, text).cpu() for part in z])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows of (n, c) whose largest logit is at the label (n,), from 0 to 1."""
    return (logits.argmax(dim=-1) == labels).float().mean().item()


class WordTokenizer:
    """One id a word, for the small CLIP: lower case, punctuation dropped.

    0 is padding, then come the words, the start and the end of the text. The end has the highest
    id because open_clip reads the text at the position of the largest one.

    >>> WordTokenizer(["a", "cat"], context_length=5)("A cat.").tolist()
    [[3, 1, 2, 4, 0]]
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
        """Ids (n, context_length) of n texts.

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
    """The architecture of the small CLIP, in the layout of open_clip's own file."""
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
    """The CLIP that `config` (as of `small_clip_config`) describes, with random weights."""
    model = open_clip.CLIP(**config["model_cfg"])
    overlay = {"size": model.visual.image_size, **config["preprocess_cfg"]}
    set_model_preprocess_cfg(model, merge_preprocess_dict(PreprocessCfg(), overlay))
    return model


def save_small_clip(
    directory: str | Path, model: nn.Module, config: dict[str, Any], words: Sequence[str]
) -> None:
    """Write the weights (float16) and the configuration with the words; open_clip reads both.

    Raises `ValueError` for words that the tokenizer refuses or `config` was not made for.
    """
    if config["model_cfg"]["text_cfg"]["vocab_size"] != WordTokenizer(words).vocab_size:
        raise ValueError(f"the configuration was made for other words than these {len(words)}")
    state = {name: x.detach().half().cpu().contiguous() for name, x in model.state_dict().items()}
    with atomic_path(Path(directory) / WEIGHTS_FILE) as path:
        save_file(state, path)
    with atomic_path(Path(directory) / CONFIG_FILE) as path:
        path.write_text(json.dumps({**config, "words": list(words)}, indent=1) + "\n", "utf-8")


def load_small_clip(directory: str | Path, block: int = -2) -> SplitCLIP:
    """The small CLIP that `save_small_clip` wrote: float32, in eval mode, frozen."""
    config_path, weights = Path(directory) / CONFIG_FILE, Path(directory) / WEIGHTS_FILE
    for path in (config_path, weights):
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: run `python -m patchsae_lib pretrain`")
    config = json.loads(config_path.read_text(encoding="utf-8"))
    model = create_small_clip(config)
    try:
        model.load_state_dict(load_file(weights))  # copies into the float32 parameters
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{weights} does not fit {CONFIG_FILE}: run `python -m patchsae_lib pretrain`"
        ) from error
    tokenizer = WordTokenizer(config["words"], model.context_length)
    return SplitCLIP(model.eval().requires_grad_(False), tokenizer, block)


def load_clip(config: ModelConfig, data: Path = DATA) -> SplitCLIP:
    """The CLIP of a profile: float32, in eval mode, frozen.

    With `config.precision` "bfloat16" the blocks before the hook compute tokens in that, which is
    twice as fast where there is hardware for it ("auto" asks) and 1 % off.

    `config.name` is `small` (read from `data/small_clip/`) or an open_clip ViT; then
    `config.pretrained` is an open_clip tag, a safetensors file, or `none` for random weights, the
    same every time. Nothing is unpickled. Only a tag's file is downloaded, unless the Hugging Face
    cache has it.

    Raises `ValueError` for a model or weights that do not fit, `FileNotFoundError` for no weights.
    """
    small = config.name == "small"
    clip = load_small_clip(data / "small_clip", config.block) if small else _load_open_clip(config)
    if precision(config.precision, best_device()) == "bfloat16":
        # whole copies: autocast takes a path through attention that is 10 times as slow on a CPU
        blocks = clip.visual.transformer.resblocks[: clip.block + 1]
        clip.first = copy.deepcopy(blocks).bfloat16()
    return clip


def _load_open_clip(config: ModelConfig) -> SplitCLIP:
    model_cfg = _model_cfg(config.name)
    tag = open_clip.get_pretrained_cfg(config.name, config.pretrained)
    if tag and tag.get("quick_gelu", False) != model_cfg.get("quick_gelu", False):
        raise ValueError(
            f"{config.name} and the weights {config.pretrained!r} differ in their GELU: "
            "add -quickgelu to the model's name, or remove it"
        )
    # Given a tag, open_clip falls back to a pickle where there is no safetensors file.
    weights = None if config.pretrained == "none" else _weights_file(config, tag)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = open_clip.create_model(config.name, weights, force_preprocess_cfg=tag)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{weights} does not hold the weights of {config.name}") from error
    tokenizer = open_clip.get_tokenizer(config.name)
    return SplitCLIP(model.eval().requires_grad_(False), tokenizer, config.block)


def _model_cfg(name: str) -> dict[str, Any]:
    """open_clip's description of a model whose two towers are its own."""
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


def _weights_file(config: ModelConfig, tag: dict[str, Any]) -> str:
    """The safetensors file that `config.pretrained` stands for, downloaded if need be."""
    if not tag and not config.pretrained.endswith(".safetensors"):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "it has none"
        raise ValueError(
            f"model.pretrained: {config.pretrained!r} is neither a .safetensors file nor a tag of "
            f"{config.name} ({tags})"
        )
    local = config.weights if tag else config.pretrained
    if local and not Path(local).is_file():
        raise FileNotFoundError(f"model.{'weights' if tag else 'pretrained'}: no file {local}")
    if local:
        return local
    repo = tag["hf_hub"].rstrip("/")
    cached = try_to_load_from_cache(repo, WEIGHTS_FILE)
    if isinstance(cached, str):
        return cached
    try:
        size = hf_hub_download(repo, WEIGHTS_FILE, dry_run=True).file_size or 0
        print(f"downloading {repo}/{WEIGHTS_FILE} ({size / 1e6:.0f} MB)")
        return hf_hub_download(repo, WEIGHTS_FILE)
    except OSError as error:  # of which those of the hub are kinds
        raise FileNotFoundError(
            f"the weights {config.pretrained!r} of {config.name} are not in Hugging Face's cache "
            f"and cannot be downloaded. Download https://huggingface.co/{repo}/resolve/main/"
            f"{WEIGHTS_FILE} elsewhere, and write the path of that file as model.weights in the "
            "profile (or pretrained = 'none', to try things with random weights)"
        ) from error
