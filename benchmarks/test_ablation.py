"""Ten k, on and off: `masked_logits` against the plain way, beside the limit of operations."""

import pytest
import torch
import torch.nn.functional as F
from models import small, sparse, vit_b_16
from report import against

from patchsae_lib.ablation import Decomposition, at_random, drop, keep, masked_logits
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.sae import SAE
from patchsae_lib.sparse import SparseLatents

KS = (1, 2, 5, 10, 50, 100, 500, 1000, 2000, 3000)


def plain(
    clip: SplitCLIP, sae: SAE, images: torch.Tensor, head: torch.Tensor, order: torch.Tensor
):
    """The whole model with a dense mask, for one k and one mask at a time."""
    logits = []
    for k in KS:
        for mask in (keep, drop):
            f = sae.encode(clip.tokens(images))
            pooled, _ = clip.visual._pool(
                clip._run(sae.decode(mask(f, order[0, :k])), clip.block + 1)
            )
            features = F.normalize(pooled @ clip.visual.proj, dim=-1)
            logits.append(clip.logit_scale * features @ head.T)
    return torch.stack(logits)


def fast(clip: SplitCLIP, sae: SAE, images: torch.Tensor, head: torch.Tensor, order: torch.Tensor):
    """The same by `masked_logits`."""
    split = Decomposition.of(sae, clip.tokens(images))
    rank = order.argsort(1).expand(len(images), -1)
    return torch.cat(list(masked_logits(clip, split, head, rank, KS)))


def bound(clip: SplitCLIP, sae: SAE, l0: float) -> float:
    """Multiplications of the plain way over those that cannot be saved, for one picture.

    Those are: the first half and the encoder once, each active latent's decoder row once, and for
    each mask the keys and values of the last block (of all tokens) and the rest of it for CLS.
    """
    t, d, n = 1 + clip.grid[0] * clip.grid[1], clip.d_vit, 2 * len(KS)
    block = 12 * d * d * t + 2 * t * t * d
    code = t * d * sae.d_sae
    first = (clip.block + 1) * block
    cls = 2 * d * d * t + 10 * d * d + 2 * t * d
    second = (clip.n_blocks - clip.block - 2) * block + cls
    plain_way = first + 2 * code + (clip.n_blocks - clip.block - 1) * block
    return n * plain_way / (first + code + t * l0 * d + n * second)


SETTINGS = {
    "ViT-B/16, 49,152 latents": (vit_b_16, 49_152, 150, 2),
    "small CLIP, 3,072 latents": (small, 3_072, 33, 8),
}


@pytest.fixture(scope="module", params=SETTINGS)
def setting(request):
    make, d_sae, l0, n = SETTINGS[request.param]
    clip = make()
    images = torch.randn(n, 3, *clip.visual.image_size)
    with torch.inference_mode():
        z = clip.tokens(images)
        sae = sparse(clip, d_sae, z, l0)
        active = SparseLatents.encode(sae, z)
        head = F.normalize(torch.randn(1000, clip.d_embed), dim=1)
        args = (clip, sae, images, head, at_random(d_sae))
        difference = (plain(*args) - fast(*args)).abs().max()
    assert difference < 1e-4, difference
    l0_measured = len(active.token) / (n * z.shape[1])
    return request.param, args, bound(clip, sae, l0_measured)


@pytest.mark.parametrize("way", [plain, fast])
def test_masks(benchmark, setting, way):
    name, args, limit = setting
    what = f"20 masks, {name}"
    against(benchmark, what, "plain" if way is plain else "ours", limit)
    with torch.inference_mode():
        benchmark.pedantic(way, args, rounds=5 if way is fast else 3, warmup_rounds=1)
