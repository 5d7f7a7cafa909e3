"""Our MaPLe against the authors', at the size of CLIP ViT-B/16 with stand-in weights."""

import zlib
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.interop import load_prompts
from patchsae_lib.maple import adapt

GOLDEN = {
    name.removeprefix("maple."): tensor
    for name, tensor in load_file(Path(__file__).parent / "authors_maple.safetensors").items()
}
CLASSES = ["cat", "yellow_labrador retriever", "oxeye daisy", "annual crop land"]
POSITIONS = [0, 1, 57, 130, 196, 197, 198]
NORMS = ("ln_1", "ln_2", "ln_pre", "ln_post", "ln_final")


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weights that the reference values were made with: noise of a size for each use."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("logit_scale"):
        return torch.tensor(4.6052)
    if any(part in NORMS for part in name.split(".")):
        return 0.1 * noise + (1 if name.endswith("weight") else 0)
    if name.endswith("bias"):
        return 0.02 * noise
    if any(word in name for word in ("positional_embedding", "class_embedding", "token_embed")):
        return 0.05 * noise
    return noise * (shape[-1] if len(shape) > 1 else 512) ** -0.5


def learner(depth: int = 9) -> dict[str, Tensor]:
    """The learner's part of an official checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {"ctx": (2, 512)}
    maps = ["proj"]
    for i in range(depth - 1):
        shapes[f"compound_prompts_text.{i}"] = (2, 512)
        maps.append(f"compound_prompt_projections.{i}")
    for name in maps:
        shapes |= {f"{name}.weight": (768, 512), f"{name}.bias": (768,)}
    return {f"prompt_learner.{k}": filled(f"prompt_learner.{k}", s) for k, s in shapes.items()}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """ViT-B/16 with stand-in weights, and with prompts read from an official checkpoint."""
    with torch.device("meta"):
        cfg = open_clip.get_model_config("ViT-B-16-quickgelu")
        model = open_clip.CLIP(**cfg)
    model = model.to_empty(device="cpu")
    model.attn_mask = torch.full((77, 77), -torch.inf).triu(1)  # a buffer that no state dict has
    weights = {name: filled(name, tuple(t.shape)) for name, t in model.state_dict().items()}
    model.load_state_dict(weights)
    path = tmp_path_factory.mktemp("maple") / "model.pth.tar-5"
    torch.save({"state_dict": learner(), "epoch": 5}, path)
    tokenizer = open_clip.get_tokenizer("ViT-B-16-quickgelu")
    clip = SplitCLIP(model.eval().requires_grad_(False), tokenizer)
    prompts = load_prompts(path)
    # The authors round deep prompts to float16 in every block, also in a float32 model.
    text, visual = (
        torch.cat([rows[:1], rows[1:].half().float()]) for rows in (prompts.text, prompts.visual)
    )
    return adapt(clip, replace(prompts, text=text, visual=visual), CLASSES)


@torch.no_grad()
def test_pictures_texts_and_residual_tokens(adapted) -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(7))
    z = adapted.tokens(images)
    assert z.shape == (2, 1 + 196 + 2, 768)
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(z[:, POSITIONS], GOLDEN["residual_block_-2"], **close)
    torch.testing.assert_close(adapted.features(z), GOLDEN["image_features"], **close)
    torch.testing.assert_close(adapted.text, GOLDEN["text_features"], **close)
    logits = adapted.classify(z, adapted.text)
    torch.testing.assert_close(logits, GOLDEN["logits"], **close)
