"""LoRA, fine-tuning and a linear probe change what they say, and nothing else."""

import math
import re

import open_clip
import pytest
import torch
import torch.nn.functional as F
from test_maple import NAMES, TEXT, VISION, tiny

from patchsae_lib.artefacts import DATA, ROOT, weights_hash
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.diffing import METHODS
from patchsae_lib.interop.lora import load_lora, save_lora
from patchsae_lib.pictures import Subset, few_shot, labels_of
from patchsae_lib.profiles import TuningConfig
from patchsae_lib.tuning import LoRA, LowRank, TunedCLIP, head_of, probe_head, tune, with_lora
from patchsae_lib.world import World

SHOT = TuningConfig(shots=2, epochs=3, batch=3, augment=False)


@pytest.fixture(scope="module")
def clip() -> SplitCLIP:
    return tiny()


def random_lora(seed: int = 0, rank: int = 2) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(4, 3, rank, 32, generator=generator)
    return LoRA(down, 0.1 * torch.randn(4, 3, 32, rank, generator=generator))


def images(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def some():
    world = World("land", "train", 40)
    return Subset(world, range(40), [i % 3 for i in range(40)], tuple(NAMES))


# --- LoRA ---------------------------------------------------------------------------------------


def test_queries_keys_and_values_of_each_block_get_their_maps(clip):
    lora = random_lora()
    tuned = with_lora(clip, lora, NAMES)
    for i, block in enumerate(clip.visual.transformer.resblocks):
        before = block.attn.in_proj_weight
        after = tuned.visual.transformer.resblocks[i].attn.in_proj_weight
        for part, rows in enumerate((slice(0, 32), slice(32, 64), slice(64, 96))):
            expected = before[rows] + lora.up[i, part] @ lora.down[i, part]
            assert torch.allclose(after[rows], expected, atol=1e-6)
    assert tuned.unadapted() is clip
    assert torch.equal(tuned.text, head_of(clip, NAMES))
    x = images()
    assert not torch.allclose(tuned.tokens(x), clip.tokens(x), atol=1e-3)


def test_maps_of_zero_change_nothing_and_the_first_model_never_changes(clip):
    x, lora, before = images(), random_lora(), weights_hash(clip.model)
    same = with_lora(clip, LoRA(lora.down, 0 * lora.up), NAMES)
    assert torch.equal(same.features(same.tokens(x)), clip.features(clip.tokens(x)))
    with_lora(clip, lora, NAMES)
    assert weights_hash(clip.model) == before
    assert same.model.token_embedding is clip.model.token_embedding  # the text's are shared


def test_maps_of_another_width_are_refused(clip):
    lora = random_lora()
    with pytest.raises(ValueError, match=r"\(4, 48, 16\), CLIP's are \(4, 96, 32\)"):
        with_lora(clip, LoRA(lora.down[..., :16], lora.up[:, :, :16]), NAMES)


def test_the_map_that_learns_is_the_one_that_is_kept():
    generator = torch.Generator().manual_seed(0)
    layer = LowRank(8, 2, generator)
    weight = torch.randn(24, 8)
    assert torch.equal(layer(weight), weight)
    with torch.no_grad():
        layer.up += torch.randn(3, 8, 2)
    kept = LoRA(layer.down[None], layer.up[None] * 2**-0.5)
    assert torch.allclose(layer(weight), weight + kept.change[0], atol=1e-6)


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 0])
def test_training_learns_its_pictures_and_leaves_clip_alone(clip, rank):
    before = weights_hash(clip.model)
    rate = 0.02 if rank else 0.003
    config = TuningConfig(rank=rank, shots=2, epochs=30, batch=3, lr=rate, augment=False)
    learnt, history = tune(clip, some(), NAMES, config, progress=False)
    assert [row["epoch"] for row in history] == list(range(30))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert weights_hash(clip.model) == before
    assert not any(p.requires_grad for p in clip.model.parameters())
    head = head_of(clip, NAMES)
    tuned = with_lora(clip, learnt, NAMES) if rank else TunedCLIP(clip, learnt, head)
    assert not any(p.requires_grad for p in tuned.model.parameters())
    chosen = few_shot(labels_of(some()), 3, 2, 0)
    x = clip.preprocess(some().batch(chosen.tolist()))
    with torch.no_grad():
        losses = [
            float(F.cross_entropy(model.classify(model.tokens(x), head), chosen % 3))
            for model in (clip, tuned)
        ]
    assert losses[1] < 0.7 * losses[0]
    again, _ = tune(clip, some(), NAMES, config, progress=False)
    if rank:
        assert torch.equal(again.up, learnt.up)
        about = {name: learnt.config[name] for name in ("rank", "classes", "pictures")}
        assert about == {"rank": 2, "classes": NAMES, "pictures": chosen.tolist()}
    else:
        assert weights_hash(again.visual) == weights_hash(learnt.visual)


def test_a_loss_that_is_no_number_stops(clip):
    config = TuningConfig(shots=2, epochs=9, batch=3, lr=1e30, augment=False)
    with pytest.raises(FloatingPointError, match="lower the rate"):
        tune(clip, some(), NAMES, config, progress=False)


# --- two models, a probe ------------------------------------------------------------------------


def test_any_second_model_of_the_same_shape_will_do(clip):
    second = tiny().model
    for p in second.visual.parameters():
        p.data += 0.01
    pair = TunedCLIP(clip, second, head_of(clip, NAMES))
    assert pair.changes.keys() == second.visual.state_dict().keys()
    assert TunedCLIP(clip, clip.model, pair.text).changes == {}
    wider = open_clip.CLIP(16, vision_cfg=VISION | {"width": 48}, text_cfg=TEXT)
    with pytest.raises(ValueError, match=r"other shapes: class_embedding is \(32,\) and \(48,\)"):
        TunedCLIP(clip, wider, pair.text)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_finds_what_is_linear(n_classes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % n_classes
    centres = F.normalize(torch.randn(n_classes, 8, generator=generator), dim=1)
    noisy = centres[labels] + 0.05 * torch.randn(60, 8, generator=generator)
    features = F.normalize(noisy, dim=1)
    head = probe_head(features, labels, n_classes)
    assert head.shape == (n_classes, 8)
    assert ((features @ head.T).argmax(1) == labels).all()
    alone = probe_head(features[:n_classes], labels[:n_classes], n_classes)  # one of each class
    assert ((features @ alone.T).argmax(1) == labels).double().mean() > 0.9


# --- files --------------------------------------------------------------------------------------


def test_maps_are_written_and_read(tmp_path):
    lora = random_lora()
    save_lora(tmp_path / "a.safetensors", LoRA(lora.down, lora.up, {"rank": 2}))
    read = load_lora(tmp_path / "a.safetensors")
    assert torch.equal(read.down, lora.down)
    assert torch.equal(read.up, lora.up)
    assert read.config == {"rank": 2}
    with pytest.raises(ValueError, match="up"):
        save_lora(tmp_path / "b.safetensors", LoRA(lora.down, lora.up * math.nan))
    with pytest.raises(FileNotFoundError, match="no LoRA"):
        load_lora(tmp_path / "c.safetensors")


def official(params: str = "qv", **metadata: object) -> dict:
    generator = torch.Generator().manual_seed(3)
    parts = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
    weights = {
        f"layer_{i}": {
            parts[p]: {
                "w_lora_A": torch.randn(2, 32, generator=generator),
                "w_lora_B": torch.randn(32, 2, generator=generator),
            }
            for p in params
        }
        for i in range(4)
    }
    about = {"r": 2, "alpha": 1, "encoder": "vision", "params": list(params), "position": "all"}
    return {"weights": weights, "metadata": about | metadata}


def test_the_file_of_clip_lora_is_read(clip, tmp_path):
    made = official()
    torch.save(made, tmp_path / "lora_weights.pt")
    lora = load_lora(tmp_path / "lora_weights.pt")
    layer = made["weights"]["layer_1"]
    value = layer["v_proj"]["w_lora_B"] @ layer["v_proj"]["w_lora_A"] / math.sqrt(2)
    assert torch.allclose(lora.change[1, 64:], value, atol=1e-5)
    assert not lora.change[:, 32:64].any()  # keys have none in this file
    assert isinstance(with_lora(clip, lora, NAMES), TunedCLIP)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (official(encoder="both"), "encoder"),
        (official(position="top3"), "position"),
        (official("qvo"), "params of q, k and v"),
        ({"weights": {}, "metadata": official()["metadata"]}, "no maps"),
        ({"state_dict": {}}, "no file of CLIP-LoRA"),
        ({**official(), "weights": {"layer_1": {}}}, "layers are missing"),
        ({**official(), "weights": {"layer_0": {"q_proj": {}}}}, "no matrices"),
    ],
)
def test_what_is_not_the_picture_tower_s_is_refused(made, message, tmp_path):
    torch.save(made, tmp_path / "lora_weights.pt")
    with pytest.raises(ValueError, match=message):
        load_lora(tmp_path / "lora_weights.pt")


# --- what the book says --------------------------------------------------------------------------


def test_the_page_about_two_clips_says_what_works(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path))
    page = (ROOT / "book" / "your_own.md").read_text("utf-8")
    (code,) = (
        part for part in re.findall(r"```python\n(.*?)```", page, re.S) if "TunedCLIP" in part
    )
    here = {
        'Study("clip", images="folder:/my/photos", ': 'Study("smoke", ',
        "hf://owner/repo/folder": f"{DATA / 'sae.safetensors'}",
        'ModelConfig("ViT-B-16-quickgelu", "/my/finetuned.safetensors")': 'ModelConfig("small")',
        "first_of_each_class(20)": "first_of_each_class(1)",
    }
    for there, text in here.items():
        assert there in code
        code = code.replace(there, text)
    made: dict = {}
    exec(code, made)
    assert torch.allclose(*made["change"].heads, atol=1e-6)  # one CLIP: nothing differs
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" Answer")[0] for line in said if "Answer(" in line] == list(METHODS)
    assert "PCA of differences Answer(says={'change': 0.0}" in "\n".join(said)
