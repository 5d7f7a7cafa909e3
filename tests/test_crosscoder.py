"""The crosscoder, by hand and where what changed is known."""

import pytest
import torch

from patchsae_lib.crosscoder import answer, crosscoder, shift, side_by_side, surely_changed
from patchsae_lib.diffing import Change
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.sae import SAE

D, T, N = 40, 5, 24


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(first: torch.Tensor, second: torch.Tensor) -> SAE:
    """Latents that read the D directions of tokens after, and write them `first` and `second`
    times (D,) into the two models."""
    sae = SAE(2 * D, D).eval().requires_grad_(False)
    sae.W_enc.copy_(torch.cat([torch.zeros(D, D), torch.eye(D)]))
    sae.W_dec.copy_(torch.cat([first.diag(), second.diag()], 1))
    sae.b_enc.zero_()
    sae.b_dec.zero_()
    return sae


def test_a_shift_is_a_half_0_or_1_and_tells_a_factor() -> None:
    ones = torch.ones(D)
    first = ones.clone()
    first[:3] = torch.tensor([0.0, 0.3, 1.0])
    second = ones.clone()
    second[3] = 0
    assert shift(by_hand(first, second))[:4].tolist() == pytest.approx([1, 0.85, 0.5, 0])


def test_what_is_sure_is_beyond_the_null_and_there_are_enough() -> None:
    null = 0.5 + 0.02 * normal(1000)
    same = 0.5 + 0.02 * normal(1000, seed=1)
    assert not surely_changed(same, null).any()
    moved = same.clone()
    moved[:50] = 0.9
    moved[50:100] = 0.2
    sure = surely_changed(moved, null)
    assert sure[:100].all()
    assert int(sure[100:].sum()) <= 10  # about 5 % of those found are false
    few = same.clone()
    few[:15] = 0.9
    assert not surely_changed(few, null).any()


@pytest.mark.parametrize(("factor", "created"), [(0.1, 1.0), (0.4, 0.0)])
def test_an_answer_by_hand(factor: float, created: float) -> None:
    f = torch.rand(N, T, D, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(N) % 4
    f[torch.arange(N), :, labels] += 2  # latents 0 to 3 tell classes apart
    first = torch.ones(D)
    first[:25] = factor
    head = torch.eye(4)
    change = Change(SAE(D, D), f * first, f, labels, (head, head), None)
    null = 0.5 + 0.01 * normal(D)
    says = answer(change, by_hand(first, torch.ones(D)), null).says
    energy = f.square().sum((0, 1))
    assert says["change"] == pytest.approx(float(energy[:25].sum() / energy.sum()), abs=1e-5)
    assert says["created"] == pytest.approx(created)
    assert says["old"] == pytest.approx(1 - created)
    assert says["alpha"] == pytest.approx(factor, abs=1e-5)
    assert says.get("auroc", 1.0) == 1.0
    assert ("auroc" in says) == (created > 0)
    same = answer(change, by_hand(torch.ones(D), torch.ones(D)), null)
    assert same.says == {"change": 0.0}


def test_it_finds_the_latents_that_one_model_lacks_and_no_rotation() -> None:
    f = normal(200, 8, D).clamp_min(0) * (torch.rand(200, 8, D) < 0.1)
    f[..., 0] = (torch.rand(200, 8) < 0.3) * 2.0
    rows = torch.linalg.qr(normal(D, D, seed=2)).Q
    lacks = f.clone()
    lacks[..., 0] = 0
    before, after, turn = lacks @ rows, f @ rows, torch.linalg.qr(normal(D, D, seed=3)).Q
    dictionary = SAEConfig("batchtopk", 2, k=6, scale_inputs=True)
    config = TrainConfig(batch_tokens=256, steps=300, lr=3e-3, warmup=10)
    ones = torch.ones(200, 8, D)
    sae = crosscoder(before + ones, after + ones, config, dictionary)
    halves = sae.W_dec[:, :D], sae.W_dec[:, D:]
    of_new = int((halves[1] @ rows[0] / halves[1].norm(dim=1)).argmax())
    assert float(shift(sae)[of_new]) > 0.9
    turned = crosscoder(after + ones, (after + ones) @ turn, config, dictionary)
    z = side_by_side(after + ones, (after + ones) @ turn)
    is_active = (turned.encode(z) > 0).flatten(0, 1).any(0)
    assert float((shift(turned)[is_active] - 0.5).abs().max()) < 0.2
