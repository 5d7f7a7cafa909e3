"""One pass that learns everything about every latent, against the first half of CLIP alone."""

import pytest
import torch
from report import against

from patchsae_lib.checkpoints import load_sae
from patchsae_lib.clip import DATA, load_small_clip
from patchsae_lib.latents import LatentTable
from patchsae_lib.world import World


@pytest.fixture(scope="module")
def setting():
    clip, sae = load_small_clip(DATA / "small_clip"), load_sae(DATA / "sae.safetensors")
    world = World("world", "test", 256)
    images = clip.preprocess(world.batch(range(256)))
    labels = torch.tensor([world.label(i) for i in range(256)])
    return clip, sae, images, labels, world.class_names


def first_half(clip, sae, images, labels, class_names):
    for part in images.split(64):
        clip.tokens(part)


def scan(clip, sae, images, labels, class_names):
    table = LatentTable.empty(sae.d_sae, class_names)
    for rows in torch.arange(len(images)).split(64):
        table.add(sae, clip.tokens(images[rows]), rows, labels[rows])


@pytest.mark.parametrize("way", [scan, first_half])
def test_scan(benchmark, setting, way):
    against(benchmark, "a pass over 256 pictures, 3,072 latents", way.__name__.replace("_", " "))
    with torch.inference_mode():
        benchmark.pedantic(way, setting, rounds=5, warmup_rounds=1)
