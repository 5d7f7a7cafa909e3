import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchsae_lib.explorer import examples, nearest


def test_examples_by_hand() -> None:
    levels = torch.zeros(8, 3)
    levels[:5, 0] = torch.tensor([5.0, 1, 4, 2, 3])  # active on 0, 2, 4, 3, 1, in this order
    levels[6, 1] = 1.0
    labels = torch.tensor([0, 1, 1, 1, 1, 0, 1, 1])
    chosen = examples(levels, labels)
    assert chosen["quantiles"].tolist() == [[2, 4, 3], [6, 6, 6], [-1, -1, -1]]
    assert sorted(chosen["random"][1].tolist()) == [-1, -1, 6]
    assert chosen["random"][2].tolist() == [-1, -1, -1]
    assert chosen["absent"][0, 0] == 5  # of class 0 like picture 0, and without the latent
    assert sorted(chosen["absent"][0].tolist()) == [5, 6, 7]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_examples_are_active_where_they_should_be(n: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.rand(n, d, generator=generator) * (torch.rand(n, d, generator=generator) > 0.5)
    labels = torch.randint(-1, 3, (n,), generator=generator)
    chosen = examples(levels, labels)
    for latent in range(d):
        active = {i for i in range(n) if levels[i, latent] > 0}
        for name, expected in (
            ("quantiles", active),
            ("random", active),
            ("absent", set(range(n)) - active),
        ):
            rows = [i for i in chosen[name][latent].tolist() if i >= 0]
            assert set(rows) <= expected
            if name != "quantiles":
                assert len(rows) == len(set(rows)) == min(3, len(expected))
        strengths = [float(levels[i, latent]) for i in chosen["quantiles"][latent] if i >= 0]
        assert strengths == sorted(strengths, reverse=True)


def test_the_nearest_latents_are_others_by_cosine() -> None:
    directions = torch.tensor([[1.0, 0.0], [10.0, 1.0], [0.1, 2.0], [-1.0, 0.0]])
    near, cosine = nearest(directions)
    assert near.tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]
    assert cosine[0, 0] == pytest.approx(10 / math.sqrt(101))
    assert nearest(torch.randn(20, 3))[0].shape == (20, 8)
