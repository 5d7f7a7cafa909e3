"""One training step of another library, each time a line comes in: peers.py LIBRARY D_SAE

Run by the benchmark with the interpreter of an environment that has these libraries. Every one is
used as its own documentation says, on the CPU or, if there is one, the GPU: ReLU and L1, Adam.
"""

import sys
from collections.abc import Callable

import torch

D_VIT, N_TOKENS = 768, 4096
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sae_lens(d_sae: int, autocast: bool = False) -> Callable[[torch.Tensor], object]:
    """SAELens' trainer; `autocast` is its own option for bfloat16."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D_VIT, d_sae=d_sae, device=DEVICE))
    config = SAETrainerConfig(
        total_training_samples=N_TOKENS * 10_000,
        train_batch_size_samples=N_TOKENS,
        lr_end=3e-5,
        device=DEVICE,
        autocast=autocast,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, iter(()))
    return lambda x: trainer._train_step(sae, x)


def sae_lens_autocast(d_sae: int) -> Callable[[torch.Tensor], object]:
    """The same in bfloat16."""
    return sae_lens(d_sae, autocast=True)


def overcomplete(d_sae: int) -> Callable[[torch.Tensor], object]:
    """Overcomplete's training loop, silent, over one batch."""
    from overcomplete.sae import SAE, train_sae
    from overcomplete.sae.losses import mse_l1

    sae = SAE(D_VIT, d_sae, device=DEVICE)
    adam = torch.optim.Adam(sae.parameters(), lr=3e-4)
    return lambda x: train_sae(sae, [x], mse_l1, adam, nb_epochs=1, monitoring=0, device=DEVICE)


def dictionary_learning(d_sae: int) -> Callable[[torch.Tensor], object]:
    """The standard trainer of dictionary_learning: unit-norm decoder by a constrained Adam."""
    from dictionary_learning.trainers.standard import StandardTrainer

    trainer = StandardTrainer(
        steps=10_000, activation_dim=D_VIT, dict_size=d_sae, layer=0, lm_name="", device=DEVICE
    )
    return lambda x: trainer.update(1, x)


if __name__ == "__main__":
    torch.manual_seed(0)
    step = globals()[sys.argv[1]](int(sys.argv[2]))
    x = torch.randn(N_TOKENS, D_VIT, device=DEVICE)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    for _ in sys.stdin:
        step(x)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        print("done", file=answers, flush=True)
