"""CLIP cut in two at the residual stream, and the zero-shot head (paper section 3).

    images ── tokens ──▶ z (images, 1 + n_patches, d_vit) ── features ──▶ (images, d_embed)

The autoencoder reads z and replaces it; the second half turns z into a class.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from patchsae_lib.distributed import batch_size

Template = str | Callable[[str], str]
Tokenizer = Callable[[list[str]], Tensor]

# The 80 prompt templates of the paper's zero-shot classifier (section 4.1).
OPENAI_TEMPLATES: tuple[Template, ...] = open_clip.OPENAI_IMAGENET_TEMPLATES


class SplitCLIP(nn.Module):
    """An open_clip CLIP with a ViT image tower, cut after block `block` (paper section 3.1).

    `features(tokens(x))` equals `model.encode_image(x, normalize=True)`. The constructor takes the
    model as it is; `load_clip` puts it in eval mode and freezes it.

    Attributes: `grid` (rows, columns of patches), `n_tokens` (1 + n_patches), `d_vit`, `d_embed`,
    `n_blocks`, `block` (from 0), `logit_scale`, and `n_prompts`: how many tokens an adapted model
    has after its patches, here 0. `first` are copies of the blocks up to the hook in bfloat16,
    which compute tokens when no gradient is needed. Raises `TypeError` if the image tower is not
    open_clip's ViT, and `ValueError` if it does not pool its tokens or has no such block.
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
        self.model: Any = model  # CLIP, CustomTextCLIP or CoCa, which have no common base class
        self.tokenizer, self.first = tokenizer, first
        visual = _checked_tower(model, block)
        self.n_blocks = len(visual.transformer.resblocks)
        self.block = block % self.n_blocks
        self.grid: tuple[int, int] = visual.grid_size
        self.n_tokens = 1 + self.grid[0] * self.grid[1]
        self.d_vit: int = visual.transformer.width
        self.d_embed: int = visual.output_dim
        self.preprocess_cfg = PreprocessCfg(**getattr(visual, "preprocess_cfg", {}))
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.preprocess_cfg, name)).view(-1, 1, 1)
            self.register_buffer(name, values.to(visual.class_embedding.device), persistent=False)

    def at_block(self, block: int) -> SplitCLIP:
        """Return the same model, whose weights it shares, cut after another block."""
        clip = SplitCLIP(self.model, self.tokenizer, block)
        return clip.in_bfloat16() if self.first is not None else clip

    def in_bfloat16(self) -> SplitCLIP:
        """Give this model its copies `first`, and return it. They are whole copies, since autocast
        takes a path through attention that is 10 times as slow on a CPU."""
        blocks = self.visual.transformer.resblocks[: self.block + 1]
        self.first = copy.deepcopy(blocks).bfloat16()
        return self

    @property
    def device(self) -> torch.device:
        """The device of the model; every method moves its inputs there."""
        return self.mean.device

    @property
    def at_once(self) -> int:
        """How many images it computes together, with ten values a token and dimension."""
        return batch_size(self.device, 10 * self.n_tokens * self.d_vit, least=8)

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.visual

    @property
    def logit_scale(self) -> float:
        """The factor from a cosine similarity to a logit (1 / temperature)."""
        return self.model.logit_scale.detach().exp().item()

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Resize, crop and normalise uint8 pictures (b, 3, h, w) of any size: float images.

        Within 2 of 255 levels of open_clip's transform of PIL images (antialiased, bicubic unless
        the weights say otherwise), except at sharp edges next to black or white: there bicubic
        overshoots, and Pillow and torch (CPU, GPU) clip at different moments.
        """
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
            got = f"{pictures.dtype} {tuple(pictures.shape)}"
            raise ValueError(f"preprocess expects uint8 pictures (b, 3, h, w), got {got}")
        cfg, target = self.preprocess_cfg, list(self.visual.image_size)
        pictures = pictures.to(self.device)
        if list(pictures.shape[-2:]) != target:
            # One number scales the shorter side, two squash the picture (some CLIPs of open_clip).
            size = target if cfg.resize_mode == "squash" else target[:1]
            pictures = resize(pictures, size, InterpolationMode(cfg.interpolation), antialias=True)
            pictures = center_crop(pictures, target)
        return (pictures / 255 - self.mean) / self.std

    def tokens(self, images: Tensor) -> Tensor:
        """Compute residual tokens z (b, 1 + n_patches + n_prompts, d_vit), prompts last, from
        preprocessed images (b, 3, h, w)."""
        expected = (3, *self.visual.image_size)
        if tuple(images.shape[1:]) != expected or not images.is_floating_point():
            got = f"{images.dtype} {tuple(images.shape)}: call preprocess first"
            raise ValueError(f"tokens expects float images (b, *{expected}), got {got}")
        return self._run(self._embed(images.to(self.device)), 0, self.block + 1)

    def neurons(self, images: Tensor) -> Tensor:
        """Compute the MLP's neurons (b, 1 + n_patches, width) in the last block before the hook,
        after the nonlinearity, from preprocessed images (b, 3, h, w)."""
        blocks: Any = self.first or self.visual.transformer.resblocks
        mlp = blocks[self.block].mlp
        if not hasattr(mlp, "gelu"):
            raise TypeError(f"the MLP of block {self.block} has no GELU to read: {mlp}")
        outputs: list[Tensor] = []
        hook = mlp.gelu.register_forward_hook(lambda _module, _input, out: outputs.append(out))
        try:
            self.tokens(images)
        finally:
            hook.remove()
        x = outputs[0].float()
        return x if self.visual.transformer.batch_first else x.transpose(0, 1)

    def features(self, z: Tensor) -> Tensor:
        """Compute image features (b, d_embed), unit norm, from what `tokens` returns."""
        expected = (self.n_tokens + self.n_prompts, self.d_vit)
        if tuple(z.shape[1:]) != expected:
            raise ValueError(f"features expects z (b, *{expected}), got {tuple(z.shape)}")
        last = max(self.block + 1, self.n_blocks - 1)
        x = self._run(z.to(self.mean), self.block + 1, last)
        x = self._cls_of_last_block(x) if self._only_cls_leaves(last) else self._run(x, last)
        return F.normalize(self.visual._pool(x)[0] @ self.visual.proj, dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Compute text features (n, d_embed), unit norm, from the tokenizer's ids of n texts."""
        return self.model.encode_text(ids.to(self.device), normalize=True)

    def classify(self, z: Tensor, text_features: Tensor) -> Tensor:
        """Compute logits (b, c), the scaled cosines of image features and text features
        (c, d_embed), from residual tokens."""
        features, scale = self.features(z), self.model.logit_scale.detach().exp()
        return scale * features @ text_features.to(features.device).T

    @torch.no_grad()
    def text_features(
        self, class_names: Sequence[str], templates: Sequence[Template], batch: int = 512
    ) -> Tensor:
        """Build the zero-shot head (c, d_embed), on the CPU: the normalised mean over templates.

        Deviation: the authors do not normalise the mean, so that a class whose prompts disagree
        gets smaller logits; open_clip normalises it, and so do we. Raises `ValueError` for a
        template without {}, and warns of different names that are the same to the tokenizer.
        """
        if not class_names or not templates:
            raise ValueError("text_features needs at least one class name and one template")
        prompts = [partial(t.replace, "{}") if isinstance(t, str) else t for t in templates]
        if fixed := [t for t, f in zip(templates, prompts, strict=True) if f("a") == f("b")]:
            raise ValueError(f"template {fixed[0]!r} has no {{}} for the name of a class")
        ids = self.tokenizer([prompt(name) for name in class_names for prompt in prompts])
        known: dict[bytes, str] = {}  # the first name of the same ids: the end of long ones is cut
        for name, row in zip(class_names, ids.split(len(prompts)), strict=True):
            if (twin := known.setdefault(row.numpy().tobytes(), name)) != name:
                pair = f"{twin[-60:]!r} and {name[-60:]!r}"
                warnings.warn(f"{pair} are one text to CLIP: give shorter names", stacklevel=3)
        x = torch.cat([self.encode_text(part) for part in ids.split(batch)])
        return F.normalize(x.unflatten(0, (-1, len(prompts))).mean(dim=1), dim=-1).cpu()

    def _only_cls_leaves(self, last: int) -> bool:
        """Return whether there is a last block to run, and only its CLS token is pooled."""
        visual = self.visual
        pools_cls = visual.pool_type == "tok" and visual.attn_pool is None
        kinds = [type(block) for block in visual.transformer.resblocks[last:]]
        return pools_cls and kinds == [ResidualAttentionBlock]

    def _cls_of_last_block(self, x: Tensor) -> Tensor:
        """Compute the CLS token (b, 1, d_vit) after the last block from x (b, t, d_vit): a sixth
        of the block's operations, since the other tokens need only keys and values."""
        transformer = self.visual.transformer
        block, batch_first = transformer.resblocks[-1], transformer.batch_first
        x = self._enter(x, self.n_blocks - 1)
        h, cls = block.ln_1(x), x[:, :1]
        q, kv = (h[:, :1], h) if batch_first else (h[:, :1].transpose(0, 1), h.transpose(0, 1))
        mixed = block.attn(q, kv, kv, need_weights=False)[0]
        cls = cls + block.ls_1(mixed if batch_first else mixed.transpose(0, 1))
        return cls + block.ls_2(block.mlp(block.ln_2(cls)))

    def _embed(self, images: Tensor) -> Tensor:
        """Compute the input of the first block (b, 1 + n_patches + n_prompts, d_vit)."""
        return self.visual._embeds(images)

    def _enter(self, x: Tensor, _block: int) -> Tensor:
        """Return the input of a block, here x; an adapted model inserts its prompts."""
        return x

    def _run(self, x: Tensor, start: int, stop: int | None = None) -> Tensor:
        """Run x (b, t, d_vit) through the blocks from `start` up to, not including, `stop`."""
        transformer, dtype = self.visual.transformer, x.dtype
        n_copies = 0 if self.first is None or x.requires_grad else len(self.first)
        for i in range(self.n_blocks)[start:stop]:
            x = self._enter(x, i)
            x = x if transformer.batch_first else x.transpose(0, 1)
            if self.first is not None and i < n_copies:
                x = self.first[i](x.bfloat16())
            else:
                x = transformer.resblocks[i](x.to(dtype))
            x = x if transformer.batch_first else x.transpose(0, 1)
        return x.to(dtype)


def _checked_tower(model: Any, block: int) -> Any:
    """Return the image tower of an open_clip model, if it is a ViT that has this block."""
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        kind = type(visual).__name__
        raise TypeError(f"the image tower is a {kind}, not open_clip's VisionTransformer: use one")
    if visual.pool_type == "none":
        raise ValueError("the image tower does not pool its tokens (pool_type 'none')")
    n_blocks = len(visual.transformer.resblocks)
    if not -n_blocks <= block < n_blocks:
        raise ValueError(f"block {block}: the image tower has {n_blocks} blocks")
    return visual


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows of (n, c) whose largest logit is at the label (n,), 0 to 1."""
    return (logits.argmax(dim=-1) == labels.to(logits.device)).float().mean().item()
