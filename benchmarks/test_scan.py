"""The pass that counts the statistics of all latents, against the first half of CLIP alone and
against the plain way: all of CLIP, dense latents, and a loop over the pictures of a batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import small, sparse, vit_b_16
from report import against

from patchsae_lib.artefacts import DATA
from patchsae_lib.distributed import resolve_precision
from patchsae_lib.interop import load_clip, load_sae
from patchsae_lib.latents import LatentTable
from patchsae_lib.profiles import ModelConfig, StatisticsConfig

CLASSES = tuple(map(str, range(10)))
TAU = StatisticsConfig().tau


def first_half(clip, sae, images, labels):
    for part in images.split(16):
        clip.tokens(part)


def scan(clip, sae, images, labels):
    table = LatentTable.empty(sae.d_sae, CLASSES)
    for rows in torch.arange(len(images)).split(16):
        table.add(sae, clip.tokens(images[rows]), rows, labels[rows])
    return table


def plain(clip, sae, images, labels):
    """Return the class-level activation, for a comparison."""
    counts = torch.zeros(len(CLASSES), sae.d_sae)
    frequency, total = torch.zeros(sae.d_sae), torch.zeros(sae.d_sae)
    cuts = sae.cuts(TAU)
    for rows in torch.arange(len(images)).split(16):
        z = clip.tokens(images[rows])
        clip.features(z)  # a hook reads z while all of CLIP runs
        f = F.relu((z - sae.b_dec) @ sae.W_enc + sae.b_enc)
        for latents, label in zip(f, labels[rows], strict=True):
            frequency += (latents > 0).any(0)
            total += latents.mean(0)
            counts[label] += (latents > cuts).sum(0)
    return counts


def paper_size():
    clip = vit_b_16()
    images = torch.randn(16, 3, *clip.visual.image_size)
    return clip, sparse(clip, 49_152, clip.tokens(images[:2]), 150), images


def world_size():
    return small(), load_sae(DATA / "sae.safetensors"), torch.randn(256, 3, 112, 112)


SETTINGS = {"ViT-B/16, 49,152 latents": paper_size, "small CLIP, 3,072 latents": world_size}


@pytest.fixture(scope="module", params=SETTINGS)
def setting(request):
    with torch.inference_mode():
        clip, sae, images = SETTINGS[request.param]()
        labels = torch.arange(len(images)) % len(CLASSES)
        given = clip, sae, images, labels
        assert torch.equal(scan(*given).class_above, plain(*given).int())
    return request.param, given


@pytest.mark.parametrize("way", [first_half, scan, plain])
def test_scan(benchmark, setting, way):
    name, given = setting
    title = way.__name__.replace("_", " ")
    against(benchmark, f"scan, {name}", title, count=len(given[2]), unit="pictures")
    with torch.inference_mode():
        benchmark.pedantic(way, given, rounds=5, warmup_rounds=1)


def test_first_half_in_bfloat16(benchmark):
    if resolve_precision("auto", torch.device("cpu")) != "bfloat16":
        pytest.skip("no hardware for bfloat16")
    clip = load_clip(ModelConfig(pretrained="none", precision="bfloat16"))
    images = torch.randn(16, 3, *clip.visual.image_size)
    task, way = "scan, ViT-B/16, 49,152 latents", "first half, bfloat16"
    against(benchmark, task, way, count=16, unit="pictures")
    with torch.inference_mode():
        benchmark.pedantic(first_half, (clip, None, images, None), rounds=5, warmup_rounds=1)


SCAN = """
import re, sys
from patchsae_lib.artefacts import DATA
from patchsae_lib.interop import load_sae
from patchsae_lib.interop.openclip import load_small_clip
from patchsae_lib.latents import scan
from patchsae_lib.world import World
clip, sae = load_small_clip(DATA / "small_clip"), load_sae(DATA / "sae.safetensors")
scan(clip, sae, World("world", "test", int(sys.argv[1])))
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("n", [128, 512, 2048])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory(benchmark, n):
    def run():
        command = [sys.executable, "-c", SCAN, str(n)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    kilobytes = benchmark.pedantic(run, rounds=1)
    way = f"{n} pictures, {kilobytes / 2**10:,.0f} MB at most"
    against(benchmark, "memory of a scan, small CLIP", way, count=n, unit="pictures")
