"""Our statistics of latents against the authors', on the same activations."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchsae_lib.latents import LatentTable
from patchsae_lib.sae import SAE

GOLDEN = {
    name.removeprefix("stats."): tensor
    for name, tensor in load_file(Path(__file__).parent / "authors_statistics.safetensors").items()
}
SILENT = 7
ALIVE = torch.arange(64) != SILENT


def identity(d: int) -> SAE:
    """Its latents are its tokens, where those are positive."""
    sae = SAE(d, d).eval().requires_grad_(False)
    sae.W_enc.copy_(torch.eye(d))
    return sae


@pytest.fixture(scope="module")
def table() -> LatentTable:
    table = LatentTable.empty(64, [str(i) for i in range(9)])
    z, labels = GOLDEN["activations"], GOLDEN["labels"]
    for rows in torch.arange(len(z)).split(50):
        table.add(identity(64), z[rows], rows, labels[rows])
    return table


def test_reference_images(table: LatentTable) -> None:
    theirs, ours = GOLDEN["max_activating_image_values"], table.top_values
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=0)
    # where two values are equal theirs has no order; ours takes the lower index
    differ = ALIVE[:, None] & (table.top_images != GOLDEN["max_activating_image_indices"])
    level = GOLDEN["activations"].mean(1)
    for latent, place in differ.nonzero().tolist():
        index = int(table.top_images[latent, place])
        at = float(level[index, latent]) if index >= 0 else 0.0
        assert at == pytest.approx(float(theirs[latent, place]), rel=1e-5)


def test_frequencies_and_means(table: LatentTable) -> None:
    assert torch.allclose(table.frequency, GOLDEN["sae_sparsity"], rtol=1e-5)
    assert torch.allclose(table.mean.float()[ALIVE], GOLDEN["sae_mean_acts"][ALIVE], rtol=1e-5)
    assert table.mean[SILENT] == 0


def test_entropy_of_labels(table: LatentTable) -> None:
    few = (table.top_images < 0).any(1)
    theirs = GOLDEN["label_entropy"]
    assert torch.allclose(table.entropy.float()[~few], theirs[~few], atol=1e-5)
    assert table.entropy[few].isnan().all()


def test_class_level_activations(table: LatentTable) -> None:
    theirs = GOLDEN["class_counts_threshold_0.2"]
    assert torch.equal(table.class_above.float(), theirs)
    assert torch.equal(table.n_above.float(), theirs.sum(0))
