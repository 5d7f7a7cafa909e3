"""What the real sae-lens and sparsify make of SAEs, run by a Python that has them.

    PYTHON peers.py (saelens | sparsify) FOLDER

Reads `z` from FOLDER/z.safetensors, writes SAEs of theirs into FOLDER/theirs/NAME, reads ours in
FOLDER/ours/NAME, and writes what each computes, `f` and `z_hat`, into its folder.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

D_VIT, D_SAE, K = 24, 96, 5


def randomise(sae: torch.nn.Module) -> None:
    """Biases and decoder norms away from where they start, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / D_VIT**0.5)


def saelens(folder: Path, z: torch.Tensor) -> None:
    import sae_lens as lib

    sizes = {"d_in": D_VIT, "d_sae": D_SAE}
    no_b_dec = {"apply_b_dec_to_input": False}
    rescale = {"k": K, "rescale_acts_by_decoder_norm": True}
    made = {
        "standard": lib.StandardSAE(lib.StandardSAEConfig(**sizes)),
        "standard-no-b_dec": lib.StandardSAE(lib.StandardSAEConfig(**sizes, **no_b_dec)),
        "topk": lib.TopKSAE(lib.TopKSAEConfig(**sizes, k=K)),
        "topk-rescale": lib.TopKSAE(lib.TopKSAEConfig(**sizes, **rescale, **no_b_dec)),
        "jumprelu": lib.JumpReLUSAE(lib.JumpReLUSAEConfig(**sizes)),
    }
    for name, sae in made.items():
        randomise(sae)
        sae.save_model(folder / "theirs" / name)
    config = lib.BatchTopKTrainingSAEConfig(**sizes, **rescale)
    sae = lib.BatchTopKTrainingSAE(config)
    randomise(sae)
    sae.topk_threshold = torch.tensor(0.6, dtype=torch.double)
    sae.save_inference_model(folder / "theirs" / "batchtopk")
    scaled = lib.StandardSAEConfig(**sizes, normalize_activations="expected_average_only_in")
    sae = lib.StandardSAE(scaled)
    randomise(sae)
    sae.save_model(folder / "theirs" / "scaled")
    scaler = folder / "theirs" / "scaled" / "activation_scaler.json"
    scaler.write_text(json.dumps({"scaling_factor": 0.3}))
    for path in sorted(p for p in folder.glob("*/*") if p.is_dir()):
        sae = lib.SAE.load_from_disk(path)
        if path.name == "scaled":
            sae.fold_activation_norm_scaling_factor(0.3)
        write(path, sae.encode(z), sae.decode(sae.encode(z)), type(sae).__name__)


def sparsify(folder: Path, z: torch.Tensor) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    for name, multi in (("topk", False), ("multi-topk", True)):
        sae = SparseCoder(D_VIT, SparseCoderConfig(num_latents=D_SAE, k=K, multi_topk=multi))
        randomise(sae)
        path = folder / "theirs" / name
        sae.save_to_disk(path)
        sae = SparseCoder.load_from_disk(path)
        top, index, _ = sae.encode(z)
        f = torch.zeros(len(z), D_SAE).scatter(-1, index, top)
        write(path, f, sae.decode(top, index), type(sae).__name__)


def write(folder: Path, f: torch.Tensor, z_hat: torch.Tensor, what: str) -> None:
    outputs = {"f": f.detach().contiguous(), "z_hat": z_hat.detach().contiguous()}
    save_file(outputs, folder.with_name(f"{folder.name}.outputs"), {"class": what})


if __name__ == "__main__":
    where = Path(sys.argv[2])
    with torch.no_grad():
        {"saelens": saelens, "sparsify": sparsify}[sys.argv[1]](
            where, load_file(where / "z.safetensors")["z"]
        )
