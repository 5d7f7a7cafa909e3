"""What is known of every latent after a pass over pictures (paper section 3.2)."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from patchsae_lib.sae import SAE


@torch.no_grad()
def activation_statistics(sae: SAE, tokens: Tensor, batch: int = 100) -> pd.DataFrame:
    """Frequency and mean activation of every latent over tokens (images, tokens, d_vit).

    `frequency`: share of tokens where the latent is active; `mean`: its mean where it is, 0 for a
    latent that is silent everywhere. Deviation: the authors' mean of a silent latent is NaN.
    """
    active, total, n = torch.zeros(sae.d_sae), torch.zeros(sae.d_sae), 0
    for part in tokens.split(batch):
        f = sae.encode(part.float()).flatten(0, 1)
        active += (f > 0).sum(0)
        total += f.sum(0)
        n += len(f)
    mean = total / active.clamp_min(1)
    return pd.DataFrame({"frequency": (active / n).numpy(), "mean": mean.numpy()})
