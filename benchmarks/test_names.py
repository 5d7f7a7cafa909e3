"""Naming all latents: encoding 2,400 pictures of the world, and scoring 546 concepts of 3,072
latents by sparse products, against dense products at one cut of the 13."""

import pytest
import torch
from models import small
from report import against

from patchsae_lib.artefacts import DATA
from patchsae_lib.interop import load_sae
from patchsae_lib.names import RULE, SPLIT, activity, name_latents
from patchsae_lib.tokens import collect
from patchsae_lib.world import World
from patchsae_lib.world.truth import sparse_truth

WHAT = "names of 3,072 latents, 2,400 pictures"


@pytest.fixture(scope="module")
def pictures():
    world = World("world", SPLIT, RULE.pictures)
    sae, tokens = load_sae(DATA / "sae.safetensors"), collect(small(), world)
    return sae, tokens, sparse_truth(world, range(len(world)))


def test_dense(benchmark, pictures):
    sae, tokens, truth = pictures
    n = 50  # of the pictures
    f = sae.encode(tokens[:n][:, 1:].float()).flatten(0, 1)
    shown = truth.select(torch.arange(n)).dense().flatten(0, 1).float()
    against(benchmark, f"{WHAT}: hits of {n}", "dense, one cut", count=n, unit="pictures")
    benchmark.pedantic(lambda: shown.T @ (f > 0).float(), rounds=3)


def test_activity(benchmark, pictures):
    against(benchmark, WHAT, "encode", count=RULE.pictures, unit="pictures")
    benchmark.pedantic(activity, pictures[:2], rounds=1)


def test_names(benchmark, pictures):
    sae, tokens, truth = pictures
    against(benchmark, WHAT, "choose, score and test", count=RULE.pictures, unit="pictures")
    benchmark.pedantic(name_latents, (activity(sae, tokens), truth), rounds=1)
