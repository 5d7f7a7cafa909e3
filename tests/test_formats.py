"""Other libraries' SAEs, in files made by hand: what they compute by their own definitions."""

import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchsae_lib.interop import saelens as saelens_module
from patchsae_lib.interop.autoencoders import load_sae, read_config, save_sae
from patchsae_lib.interop.files import weights_file
from patchsae_lib.interop.saelens import write_saelens
from patchsae_lib.sae import ACTIVATIONS, SAE

D_VIT, D_SAE, K = 6, 20, 3


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Z = noise(0, 2, 7, D_VIT)
W = {
    "W_enc": noise(1, D_VIT, D_SAE),
    "b_enc": noise(2, D_SAE),
    "W_dec": noise(3, D_SAE, D_VIT),
    "b_dec": noise(4, D_VIT),
}
THRESHOLD = noise(5, D_SAE)  # of both signs
PRE = (Z - W["b_dec"]) @ W["W_enc"] + W["b_enc"]
NO_B_DEC = Z @ W["W_enc"] + W["b_enc"]
NORM = W["W_dec"].norm(dim=1)


def largest(pre: Tensor) -> Tensor:
    """The K largest of each row, and of those the positive."""
    kept = pre >= pre.sort(dim=-1, descending=True).values[..., K - 1 : K]
    return torch.where(kept & (pre > 0), pre, 0)


def decoded(f: Tensor) -> Tensor:
    return f @ W["W_dec"] + W["b_dec"]


def check(path: Path, f: Tensor, z_hat: Tensor) -> SAE:
    sae = load_sae(path)
    torch.testing.assert_close(sae.encode(Z), f, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae.decode(f), z_hat, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(Z), z_hat, rtol=0, atol=1e-5)
    assert torch.equal(sae.encode(Z) > 0, f > 0)
    return sae


def saelens(folder: Path, tensors: dict[str, Tensor] = W, **cfg: Any) -> Path:
    """SAELens 6's files; a `cfg` value of ... leaves the field out."""
    cfg = {"d_in": D_VIT, "d_sae": D_SAE, "architecture": "standard", "dtype": "float32"} | cfg
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in cfg.items() if v is not ...}))
    save_file(tensors, folder / "sae_weights.safetensors")
    save_file({"sparsity": torch.zeros(D_SAE)}, folder / "sparsity.safetensors")
    return folder


def sparsify(folder: Path, tensors: dict[str, Tensor] | None = None, **cfg: Any) -> Path:
    folder.mkdir(exist_ok=True)
    cfg = {"d_in": D_VIT, "num_latents": D_SAE, "k": K, "activation": "topk"} | cfg
    (folder / "cfg.json").write_text(json.dumps(cfg))
    ours = {"encoder.weight": W["W_enc"].T.contiguous(), "encoder.bias": W["b_enc"]}
    ours |= {"W_dec": W["W_dec"], "b_dec": W["b_dec"]} | (tensors or {})
    save_file(ours, folder / "sae.safetensors", {"format": "pt"})
    return folder


@dataclass
class HookedViTConfig:
    """What Prisma has inside its configuration."""

    n_layers: int = 12


@dataclass
class VisionModelSAERunnerConfig:
    """Prisma's class, as far as it tells what is computed."""

    architecture: str = "standard"
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    normalize_activations: str = "none"
    hook_point_layer: int = 9
    vit_model_cfg: HookedViTConfig = field(default_factory=HookedViTConfig)
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def prisma(path: Path, **cfg: Any) -> Path:
    torch.save({"cfg": VisionModelSAERunnerConfig(**cfg), "state_dict": W}, path)
    return path


# --- SAELens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "f"),
    [
        ({}, PRE.relu()),
        ({"apply_b_dec_to_input": True, "normalize_activations": "none"}, PRE.relu()),
        ({"apply_b_dec_to_input": False}, NO_B_DEC.relu()),
        ({"architecture": "topk", "k": K}, largest(PRE)),
        ({"architecture": "topk", "k": K, "apply_b_dec_to_input": False}, largest(NO_B_DEC)),
        # before SAELens 6
        ({"architecture": ..., "activation_fn_str": "relu"}, PRE.relu()),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "hook_name": "x"},
            largest(PRE),
        ),
        ({"normalize_activations": False, "activation_fn": "relu"}, PRE.relu()),
    ],
)
def test_saelens(cfg: dict[str, Any], f: Tensor, tmp_path: Path) -> None:
    check(saelens(tmp_path, **cfg), f, decoded(f))


def test_saelens_latents_scaled_by_decoder_norms(tmp_path: Path) -> None:
    f = largest(NO_B_DEC * NORM)
    cfg = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
    assert not torch.equal(f > 0, largest(NO_B_DEC) > 0)
    check(saelens(tmp_path, apply_b_dec_to_input=False, **cfg), f, decoded(f / NORM))


def test_saelens_jumprelu_is_zero_up_to_its_threshold(tmp_path: Path) -> None:
    f = PRE.relu() * (PRE > THRESHOLD)
    folder = saelens(tmp_path, W | {"threshold": THRESHOLD}, architecture="jumprelu")
    sae = check(folder, f, decoded(f))
    assert not torch.equal(f > 0, PRE > 0)
    assert not sae.activate(sae.threshold).any()
    save_sae(tmp_path / "ours", sae)
    assert torch.equal(load_sae(tmp_path / "ours").encode(Z), sae.encode(Z))


def test_saelens_input_scale_in_the_file_beside(tmp_path: Path) -> None:
    folder = saelens(tmp_path, normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match=r"no readable .*activation_scaler\.json"):
        load_sae(folder)
    for scale in ("null", "0", "0.0", "-1", "NaN", "Infinity", "[2.0]", "true", '"2"'):
        (folder / "activation_scaler.json").write_text(f'{{"scaling_factor": {scale}}}')
        with pytest.raises(ValueError, match=r"activation_scaler.json: scaling_factor .* no num"):
            load_sae(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    f = ((0.25 * Z - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu()
    check(folder, f, decoded(f) / 0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_saelens_of_any_precision_reads_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = saelens(tmp_path, {name: t.to(dtype) for name, t in W.items()}, dtype=str(dtype))
    sae = load_sae(folder)
    assert torch.equal(sae.W_enc, W["W_enc"].to(dtype).float())


def test_what_saelens_says_of_the_making(tmp_path: Path) -> None:
    about = {"model_name": "clip", "hook_name": "blocks.9.hook_resid_post"}
    assert read_config(saelens(tmp_path / "6", metadata=about)) == about
    before = saelens(tmp_path / "5", **about)
    assert read_config(before)["hook_name"] == about["hook_name"]


ARCHITECTURES = ["gated", "transcoder", "temporal", "matching_pursuit", ["standard"], "new"]


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        *(
            ({"architecture": a}, rf"architecture {re.escape(repr(a))} is not")
            for a in ARCHITECTURES
        ),
        ({"architecture": "batchtopk"}, "expected .*, threshold and no other"),
        ({"activation_fn": "TopK", "k": K}, "activation_fn is 'TopK'"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input is 'false'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"normalize_activations": "constant_norm_rescale"}, "is 'constant_norm_rescale'"),
        ({"normalize_activations": "covariance_whitening"}, "is 'covariance_whitening'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str is 'tanh-relu'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is True"),
        ({"architecture": "topk"}, "TopK with k = None"),
        ({"architecture": "jumprelu"}, "expected W_enc, b_enc, W_dec, b_dec, threshold"),
    ],
)
def test_what_ours_cannot_be_is_refused_by_name(
    cfg: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        load_sae(saelens(tmp_path, **cfg))


def test_tensors_that_would_change_the_result_are_refused(tmp_path: Path) -> None:
    check(
        saelens(tmp_path, W | {"scaling_factor": torch.ones(D_SAE)}),
        PRE.relu(),
        decoded(PRE.relu()),
    )
    for extra in ("scaling_factor", "W_skip", "threshold"):
        with pytest.raises(
            ValueError, match=f"has .*{extra}.*expected W_enc, b_enc, W_dec, b_dec"
        ):
            load_sae(saelens(tmp_path, W | {extra: torch.full((D_SAE,), 2.0)}))


# --- the description against the tensors ---------------------------------------------------------


ABOVE = torch.where(PRE > 0.5, PRE, 0)  # as a threshold of 0.5 leaves it
HALF = torch.tensor(0.5)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("cfg", "extra", "f"),
    [
        ({}, {}, PRE.relu()),
        ({"architecture": "standard", "k": K}, {}, PRE.relu()),
        ({"activation": "topk", "k": K}, {}, largest(PRE)),
        ({"activation_fn": "topk", "activation_fn_str": "topk", "k": K}, {}, largest(PRE)),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": K}}, {}, largest(PRE)),
        ({}, {"threshold": HALF}, ABOVE),  # no word on the activation
        ({}, {"threshold": torch.full((D_SAE,), 0.5)}, ABOVE),
        ({}, {"threshold": torch.tensor(0.0)}, PRE.relu()),
        ({}, {"threshold": torch.tensor(-1.0)}, PRE.relu()),
        ({"architecture": "standard"}, {"threshold": torch.zeros(())}, PRE.relu()),
        ({"architecture": "jumprelu"}, {"threshold": HALF}, ABOVE),
        ({"architecture": "batchtopk", "k": K}, {"threshold": HALF}, ABOVE),
        ({"architecture": "batchtopk", "k": 3.5}, {"topk_threshold": HALF}, ABOVE),
    ],
)
def test_what_a_description_says_is_applied_wherever_it_stands(
    cfg: dict[str, Any], extra: dict[str, Tensor], f: Tensor, nested: bool, tmp_path: Path
) -> None:
    """A runner's configuration holds that of its SAE."""
    cfg = {"architecture": ..., **({"sae": cfg, "model_name": "x"} if nested else cfg)}
    check(saelens(tmp_path / "saelens", W | extra, **cfg), f, decoded(f))
    torch.save({"cfg": {"d_in": D_VIT} | cfg, "state_dict": W | extra}, tmp_path / "sae.pt")
    if ... not in cfg.values():
        check(tmp_path / "sae.pt", f, decoded(f))


def test_what_is_told_of_the_making_describes_another_sae(tmp_path: Path) -> None:
    folder = saelens(tmp_path, metadata={"architecture": "topk", "k": K, "d_in": 768})
    check(folder, PRE.relu(), decoded(PRE.relu()))
    text = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text(text, encoding="utf-8-sig")  # as some editors save it
    check(folder, PRE.relu(), decoded(PRE.relu()))


NAN = torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("cfg", "tensors", "said"),
    [
        ({"activation_fn_str": "relu", "activation_fn": "topk", "k": K}, {}, "a contradiction"),
        ({"architecture": "topk", "activation_fn": "relu", "k": K}, {}, "a contradiction"),
        ({"architecture": "jumprelu", "activation_fn": "topk"}, {}, "a contradiction"),
        ({"architecture": "topk", "k": K, "sae": {"k": 2}}, {}, "k is 3, and 2 in sae"),
        ({"sae": {"architecture": "topk", "k": K}}, {}, "architecture is 'standard', and 'topk'"),
        ({"saes": [{"architecture": "topk"}]}, {}, "'standard', and 'topk' in saes"),
        ({"d_sae": 0}, {name: t[..., :0] for name, t in W.items()}, "W_enc must be .*, got .6, 0"),
        ({"architecture": ..., "k": K}, {}, "k is 3, but no architecture is named"),
        ({"architecture": "topk", "k": K, "activation_fn_kwargs": {"k": 4}}, {}, "k is 3, and 4"),
        *(
            ({"architecture": "topk", "k": k}, {}, rf"TopK with k = {k}, .* from 1 to 20")
            for k in (True, 3.0, 0, -1, 21, None)
        ),
        ({"architecture": "topk", "activation_fn_kwargs": [3]}, {}, "TopK with k = None"),
        *(
            ({field: size}, {}, rf"{field} is {re.escape(repr(size))}, but the weights have")
            for field, size in (("d_in", 7), ("d_sae", 21), ("d_in", "6"), ("d_in", [6]))
        ),
        ({}, {"threshold": HALF}, "has .*threshold.* and no other"),
        ({"architecture": "topk", "k": K}, {"threshold": HALF}, "has .*threshold"),
        ({"architecture": "jumprelu"}, {"threshold": torch.ones(4)}, r"threshold is \(4,\)"),
        ({"architecture": "jumprelu"}, {"threshold": NAN}, "threshold .* NaN"),
        ({}, {"threshold": NAN}, "has .*threshold"),
        ({}, {"b_enc": NAN.expand(D_SAE).clone()}, "b_enc .* NaN"),
        ({}, {"W_enc": W["W_enc"].T.contiguous()}, r"b_enc is \(20,\), W_enc asks for \(6,\)"),
        ({"apply_b_dec_to_input": False}, {"b_dec": torch.ones(7)}, r"b_dec is \(7,\)"),
        *(
            ({}, {"W_enc": W["W_enc"].to(kind)}, f"W_enc is {kind}, expected floats")
            for kind in (torch.int8, torch.int64, torch.float8_e4m3fn)
        ),
        ({}, {"W_enc_scale": HALF}, "has W_dec, W_enc, W_enc_scale"),
    ],
)
def test_a_description_that_the_tensors_contradict_is_refused(
    cfg: dict[str, Any], tensors: dict[str, Tensor], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        load_sae(saelens(tmp_path, W | tensors, **cfg))
    assert str(tmp_path) in str(raised.value)
    assert len(str(raised.value).replace(str(tmp_path), "")) <= 200


@pytest.mark.parametrize(
    ("cfg", "tensors", "said"),
    [
        ({"k": True}, {}, "k = True"),
        ({"k": 3.0}, {}, "k = 3.0"),
        ({"k": 21}, {}, "k = 21"),
        ({"d_in": 7}, {}, "d_in is 7"),
        ({"num_latents": 21}, {}, "num_latents is 21"),
        ({"sae": {"signed": True}}, {}, "signed is True"),
        ({}, {"threshold": HALF}, "has .*threshold"),
        ({}, {"W_dec": W["W_dec"].to(torch.int8)}, "W_dec is torch.int8"),
    ],
)
def test_sparsifys_description_is_held_against_its_tensors_too(
    cfg: dict[str, Any], tensors: dict[str, Tensor], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        load_sae(sparsify(tmp_path, tensors, **cfg))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "sae.", "module._orig_mod.sae."])
def test_what_wrapped_a_module_is_taken_off_its_names(prefix: str, tmp_path: Path) -> None:
    wrapped = {f"{prefix}{name}": tensor for name, tensor in W.items()}
    check(saelens(tmp_path / "lens", wrapped), PRE.relu(), decoded(PRE.relu()))
    torch.save({"state_dict": wrapped}, tmp_path / "sae.pt")
    check(tmp_path / "sae.pt", PRE.relu(), decoded(PRE.relu()))
    with pytest.raises(ValueError, match="the weights of more than one module"):
        load_sae(saelens(tmp_path / "two", wrapped | {name: t.clone() for name, t in W.items()}))


# --- what is written for SAELens ---------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_sae_comes_back_from_saelens_files(activation: str, tmp_path: Path) -> None:
    sae = SAE(D_VIT, D_SAE, activation, k=K, seed=1).eval().requires_grad_(False)
    sae.b_dec.copy_(W["b_dec"])
    sae.threshold.fill_(0.3)
    write_saelens(tmp_path / "new" / "lens", sae, {"model_name": "clip"})
    again = check(tmp_path / "new" / "lens", sae.encode(Z), sae(Z))
    assert again.activation == {"batchtopk": "jumprelu"}.get(activation, activation)
    assert again.k == K or activation != "topk"
    assert read_config(tmp_path / "new" / "lens")["model_name"] == "clip"
    names = {path.name for path in (tmp_path / "new" / "lens").iterdir()}
    assert names == {"cfg.json", "sae_weights.safetensors"}


def test_the_files_are_those_of_saelens_6(tmp_path: Path) -> None:
    sae = SAE(D_VIT, D_SAE, "batchtopk", k=K)
    sae.threshold.fill_(0.3)
    write_saelens(tmp_path, sae)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"]) == ("jumprelu", D_VIT, D_SAE)
    assert cfg["metadata"]["sae_lens_version"] == "6.0.0"  # earlier ones mean other fields
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert tensors.keys() == W.keys() | {"threshold"}
    assert torch.equal(tensors["threshold"], torch.full((D_SAE,), 0.3))


def test_saelens_files_are_written_both_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_saelens(tmp_path, SAE(D_VIT, D_SAE, "topk", k=K))

    def full(_tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saelens_module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_saelens(tmp_path, SAE(D_VIT, D_SAE))
    assert load_sae(tmp_path).activation == "topk"
    assert len(list(tmp_path.iterdir())) == 2


def test_stopped_between_the_two_files_there_is_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_saelens(tmp_path, SAE(D_VIT, D_SAE, "topk", k=K))
    rename = os.replace

    def once(source: Path, target: Path) -> None:
        rename(source, target)
        monkeypatch.setattr(os, "replace", stopped)

    def stopped(*_paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        write_saelens(tmp_path, SAE(D_VIT, D_SAE))
    with pytest.raises(ValueError, match=r"need cfg\.json beside"):
        load_sae(tmp_path)


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    sae = SAE(D_VIT, D_SAE).requires_grad_(False)
    sae.b_dec[2] = float("nan")
    with pytest.raises(ValueError, match=r"b_dec .* the first at \(2,\)"):
        write_saelens(tmp_path, sae)
    assert not list(tmp_path.iterdir())


# --- sparsify ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [{}, {"multi_topk": True, "normalize_decoder": True}])
def test_sparsify(cfg: dict[str, Any], tmp_path: Path) -> None:
    check(sparsify(tmp_path, **cfg), largest(PRE), decoded(largest(PRE)))
    assert read_config(tmp_path)["num_latents"] == D_SAE


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"activation": "groupmax"}, "activation is 'groupmax'"),
        ({"transcode": True}, "transcode is True"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"signed": True}, "signed is True"),
        ({"k": None}, "TopK with k = None"),
    ],
)
def test_of_sparsify_too(cfg: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load_sae(sparsify(tmp_path, **cfg))
    skip = {"W_skip": torch.eye(D_VIT)}
    with pytest.raises(ValueError, match=r"has .*W_skip.*and no other"):
        load_sae(sparsify(tmp_path / "skip", skip))


# --- Prisma ------------------------------------------------------------------------------------


def test_prisma(tmp_path: Path) -> None:
    check(prisma(tmp_path / "relu.pt"), PRE.relu(), decoded(PRE.relu()))
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    check(prisma(tmp_path / "topk.pt", **topk), largest(PRE), decoded(largest(PRE)))
    about = read_config(tmp_path / "topk.pt")
    assert about["hook_point_layer"] == 9
    assert about["vit_model_cfg"] == {"n_layers": 12}
    assert about["dtype"] == torch.float32


@pytest.mark.parametrize(
    "file", [{"state_dict": W}, {"state_dict": W, "cfg": {"hook_point_layer": 9}}, W]
)
def test_prisma_with_its_configuration_beside(file: dict[str, Any], tmp_path: Path) -> None:
    about = {"architecture": "standard", "activation_fn_str": "relu", "hook_point_layer": 9}
    (tmp_path / "config.json").write_text(json.dumps(about))
    torch.save(file, tmp_path / "weights.pt")
    for path in (tmp_path, tmp_path / "weights.pt", tmp_path / "config.json"):
        check(path, PRE.relu(), decoded(PRE.relu()))
        assert read_config(path)["hook_point_layer"] == 9
    (tmp_path / "config.json").unlink()
    if file is W:
        with pytest.raises(ValueError, match=r"no readable .*config\.json"):
            load_sae(tmp_path)


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"architecture": "gated"}, "architecture 'gated' is not read"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str is 'tanh-relu'"),
        ({"activation_fn_str": "topk"}, "TopK with k = None"),
    ],
)
def test_of_prisma_too(cfg: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load_sae(prisma(tmp_path / "sae.pt", **cfg))


# --- which file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"), [(saelens, "sae_weights.safetensors"), (sparsify, "sae.safetensors")]
)
def test_a_folder_or_either_of_its_files(
    make: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    folder = make(tmp_path)
    expected = load_sae(folder).W_enc
    for path in (str(folder), folder / "cfg.json", folder / name):
        assert torch.equal(load_sae(path).W_enc, expected)


def test_content_and_not_the_name_tells_formats_apart(tmp_path: Path) -> None:
    folder = saelens(tmp_path)
    (folder / "sparsity.safetensors").unlink()
    (folder / "sae_weights.safetensors").rename(folder / "model.pt")
    assert load_sae(folder).d_sae == D_SAE
    save_sae(folder / "model.pt", SAE(D_VIT, 8))  # ours, with a stranger's cfg.json beside
    assert load_sae(folder).d_sae == 8


def test_a_folder_that_does_not_say_which_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \.safetensors or \.pt file: give the path"):
        load_sae(tmp_path)
    for name in ("b.safetensors", "a.pt"):
        save_sae(tmp_path / name, SAE(D_VIT, D_SAE))
    with pytest.raises(ValueError, match=r"has a\.pt, b\.safetensors: give the path"):
        load_sae(tmp_path)
    assert weights_file(tmp_path / "a.pt") == tmp_path / "a.pt"
    with pytest.raises(FileNotFoundError, match="no autoencoder at"):
        load_sae(tmp_path / "nothing")


def test_weights_without_their_description(tmp_path: Path) -> None:
    folder = saelens(tmp_path)
    for text in ("[1]", "{half", ""):
        (folder / "cfg.json").write_text(text)
        with pytest.raises(ValueError, match=r"expected a JSON object|no readable .*cfg\.json"):
            load_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(ValueError, match=r"not an autoencoder of ours.*need cfg\.json beside"):
        load_sae(folder)
