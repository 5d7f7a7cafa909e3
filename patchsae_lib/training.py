"""Training the sparse autoencoder, so that a killed run goes on where it was (section 3.1).

A checkpoint is one safetensors file: `sae.*` parameters, `adam.<parameter>.*` moments, `silent`
(d_sae,) steps since each latent was active; its metadata hold `step`, `scale`, `history` and
`run`, what the result depends on, as JSON. A run resumed from it ends bit for bit where it would
have ended undisturbed, on the same machine with as many threads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from patchsae_lib.activations import TokenCache, check_tokens, token_batches
from patchsae_lib.artefacts import atomic_path
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.sae import SAE, ghost_loss, initial_b_dec, l1_loss, reconstruction_loss

Batches = Callable[[int], Iterator[Tensor]]
History = list[dict[str, float]]

SAMPLE_TOKENS = 8192  # tokens that b_dec and the input scale are estimated from
HISTORY_ROWS = 200  # about as many points as a learning curve can show
# Tokens that go through the autoencoder together. On a CPU (…, d_sae) tensors then stay in its
# cache (1.2-1.5 times as fast as 4096 at once), on a GPU d_sae = 49,152 fits beside the weights.
CHUNK = {"cpu": 512, "cuda": 4096}


def objective(
    sae: SAE, z: Tensor, l1: float, dead: Tensor | None = None, bfloat16: bool = False
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """The loss of eq. 2 for tokens z (n, d_vit), with the ghost term for latents `dead` (d_sae).

    Returns the loss, the latents f (n, d_sae), ẑ (n, d_vit) and the loss's parts: `reconstruction`
    and `l1` = mean ‖f‖₁ without λ. `bfloat16` is for the matrix products only.
    """
    with torch.autocast(z.device.type, torch.bfloat16, enabled=bfloat16):
        pre = sae.pre_activations(z)
        f = sae.activate(pre)
        z_hat = sae.decode(f)
        parts = {"reconstruction": reconstruction_loss(z, z_hat), "l1": l1_loss(f)}
        loss = parts["reconstruction"] + l1 * parts["l1"]
        if dead is not None:
            loss = loss + ghost_loss(z, z_hat, pre, sae.W_dec, dead)
    return loss, f, z_hat, parts


class Trainer:
    """An autoencoder in training: its weights, Adam's moments, and the steps each latent is silent.

    Deviation: none in a step; the authors too set decoder rows to unit norm before it, take the
    gradient along them away, and give ghost gradients to latents silent for over `dead_after`.
    """

    def __init__(self, sae: SAE, sae_config: SAEConfig, train_config: TrainConfig) -> None:
        self.sae, self.sae_config, self.train_config = sae, sae_config, train_config
        self.adam = torch.optim.Adam(sae.parameters(), lr=train_config.lr, fused=True)
        self.silent = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_enc.device)
        self.n_steps = 0
        self.scale = 1.0
        self.history: History = []

    def step(self, z: Tensor) -> float:
        """One step of Adam on tokens z (n, d_vit); returns the loss before it.

        Raises `FloatingPointError` when the loss is NaN or infinite; the weights stay as they were.
        """
        config = self.train_config
        self.sae.normalise_decoder()
        self.adam.zero_grad()
        measured, fired = self._gradients(z)
        loss = measured["loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.n_steps}: lower train.lr (now {config.lr}), or "
                "set sae.scale_inputs so that tokens have norm 1"
            )
        self.sae.remove_parallel_gradient()
        for group in self.adam.param_groups:
            group["lr"] = config.lr * min(1.0, (self.n_steps + 1) / max(1, config.warmup))
        self.adam.step()
        self.silent += 1
        self.silent[fired] = 0
        if self._is_logged():
            dead = (self.silent > config.dead_after).float().mean()
            self.history.append({"step": self.n_steps, **measured, "dead": float(dead)})
        self.n_steps += 1
        return loss
