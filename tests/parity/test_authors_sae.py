"""Our autoencoder against the authors': every number that their code gives, within 1e-5."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from patchsae_lib.ablation import drop, keep
from patchsae_lib.interop import load_sae, read_config
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.sae import SAE, initial_b_dec
from patchsae_lib.training import Trainer, objective

HERE = Path(__file__).parent
GOLDEN = load_file(HERE / "authors_sae.safetensors")
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
L1 = 8e-5


def close(ours: Tensor, theirs: Tensor) -> None:
    """Relative to the largest element, so that a wrong scale or sign cannot hide."""
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-5, f"relative error {error:.1e}"


@pytest.fixture
def sae() -> SAE:
    sae = SAE(48, 384)
    sae.load_state_dict({name: GOLDEN[f"sae.{name}"] for name in PARAMETERS}, strict=False)
    return sae


def tokens(name: str = "x") -> Tensor:
    return GOLDEN[name].reshape(-1, 48)


def test_evaluation(sae: SAE) -> None:
    close(sae.encode(GOLDEN["x"]), GOLDEN["eval.activations"])
    close(sae(GOLDEN["x"]), GOLDEN["eval.reconstruction"])


def test_evaluation_losses(sae: SAE) -> None:
    parts, _, _ = objective(sae, tokens(), L1)
    close(parts["reconstruction"], GOLDEN["eval.mse_loss"].squeeze())
    close(L1 * parts["l1"], GOLDEN["eval.l1_loss"].squeeze())
    close(parts["loss"], GOLDEN["eval.loss"].squeeze())
    assert parts["ghost"] == GOLDEN["eval.mse_loss_ghost_resid"] == 0


def test_training_losses_with_ghost_gradients(sae: SAE) -> None:
    parts, _, _ = objective(sae, tokens(), L1, GOLDEN["train.dead"])
    close(parts["reconstruction"], GOLDEN["train.mse_loss"].squeeze())
    close(L1 * parts["l1"], GOLDEN["train.l1_loss"].squeeze())
    close(parts["ghost"], GOLDEN["train.mse_loss_ghost_resid"].squeeze())
    close(parts["loss"], GOLDEN["train.loss"].squeeze())


def test_gradients_with_ghost_gradients(sae: SAE) -> None:
    objective(sae, tokens(), L1, GOLDEN["train.dead"])[0]["loss"].backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, GOLDEN[f"train.grad_raw.{name}"])
    sae.remove_parallel_gradient()
    assert sae.W_dec.grad is not None
    close(sae.W_dec.grad, GOLDEN["train.grad_projected.W_dec"])


def test_ten_steps(sae: SAE) -> None:
    trainer = Trainer(sae, SAEConfig(l1=L1), TrainConfig(lr=4e-4, warmup=500, dead_after=64))
    losses = [trainer.step(x.reshape(-1, 48)) for x in GOLDEN["steps.x"]]
    close(torch.tensor(losses), GOLDEN["steps.loss"])
    for name, parameter in sae.named_parameters():
        after, before = GOLDEN[f"steps.after.{name}"], GOLDEN[f"sae.{name}"]
        close(parameter.detach(), after)
        # Ten warm-up steps move weights by 1e-4 only: compare where they went, too.
        moved = parameter.detach() - before
        assert (moved - (after - before)).norm() < 1e-5 * (after - before).norm(), name


def test_masked_reconstructions(sae: SAE) -> None:
    f, latents = sae.encode(GOLDEN["x"]), GOLDEN["mask.latents"]
    close(sae.decode(keep(f, latents)), GOLDEN["mask.on"])
    close(sae.decode(drop(f, latents)), GOLDEN["mask.off"])


def test_start_of_the_decoder_bias() -> None:
    images = GOLDEN["init.x"]
    close(initial_b_dec(images, "geometric_median"), GOLDEN["init.b_dec_geometric_median"])
    # Deviation: theirs keeps the token axis, (17, 48); ours is its mean.
    close(initial_b_dec(images, "mean"), GOLDEN["init.b_dec_mean"].mean(dim=0))


def test_their_checkpoint_loads_without_their_package() -> None:
    sae = load_sae(HERE / "authors_sae.pt")
    for name, parameter in sae.named_parameters():
        assert torch.equal(parameter, GOLDEN[f"sae.{name}"])
    close(sae(GOLDEN["x"]), GOLDEN["eval.reconstruction"])
    assert read_config(HERE / "authors_sae.pt")["l1_coefficient"] == L1
