"""What the quick ways of training cost in quality: the world's autoencoder, three seeds, held-out
tokens. Dense float32 is the plain way; `auto` is what the profile trains with."""

from dataclasses import replace

import pytest
from models import small
from report import against

from patchsae_lib import distributed, training
from patchsae_lib.profiles import load_profile
from patchsae_lib.sae import explained_variance, l0
from patchsae_lib.tokens import collect
from patchsae_lib.world import World


@pytest.fixture(scope="module")
def tokens():
    clip = small()
    train, test = World("world", "train", 2400), World("world", "test", 100)
    return collect(clip, train), collect(clip, test)[:].float().flatten(0, 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("way", ["dense, float32", "auto"])
def test_quality(benchmark, monkeypatch, tokens, way, seed):
    p, (train_tokens, z) = load_profile("world"), tokens
    config = replace(p.train, seed=seed)
    if way != "auto":
        config = replace(config, precision="float32")
        monkeypatch.setattr(training, "SPARSE", 0)
    arguments = {"device": distributed.best_device(), "progress": False}
    sae, _ = benchmark.pedantic(training.train, (train_tokens, p.sae, config), arguments, rounds=1)
    f = sae.cpu().encode(z)
    quality = f"explained variance {explained_variance(z, sae.decode(f)):.4f}, L0 {l0(f):.2f}"
    count, title = config.steps * config.batch_tokens, f"world's training, seed {seed}"
    against(benchmark, title, f"{way}: {quality}", count=count, unit="tokens")
