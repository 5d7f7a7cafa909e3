"""CLIP in two halves: equal to the whole, and loaded without surprises."""

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform_v2
from open_clip.transformer import Transformer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchsae_lib.clip import OPENAI_TEMPLATES, SplitCLIP, accuracy
from patchsae_lib.interop import openclip
from patchsae_lib.interop.openclip import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    WordTokenizer,
    create_small_clip,
    load_clip,
    load_small_clip,
    save_small_clip,
    small_clip_config,
)
from patchsae_lib.profiles import ModelConfig
from recipes.small_clip import predict

WORDS = [
    "a",
    "photo",
    "sketch",
    "painting",
    "silhouette",
    "of",
    "red",
    "cat",
    "dog",
    "boat",
    "tree",
]
CLASSES = ["cat", "red dog", "boat", "tree"]
TEMPLATES = ["a photo of a {}", "a painting of a {}", "a sketch of a {}"]
TINY_VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 3, "head_width": 16}
TINY_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}


def tiny_config(**vision: Any) -> dict[str, Any]:
    return {"embed_dim": 16, "vision_cfg": TINY_VISION | vision, "text_cfg": TINY_TEXT}


def tiny_clip(**vision: Any) -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.CLIP(**tiny_config(**vision)).eval()


def split(model: torch.nn.Module, block: int = -2) -> SplitCLIP:
    return SplitCLIP(model, WordTokenizer(WORDS), block)


def assert_halves_equal_whole(clip: SplitCLIP, n_images: int = 2) -> None:
    torch.manual_seed(1)
    images = torch.randn(n_images, 3, *clip.visual.image_size)
    with torch.no_grad():
        z = clip.tokens(images)
        whole = clip.model.encode_image(images, normalize=True)
        assert z.shape == (n_images, 1 + clip.grid[0] * clip.grid[1], clip.d_vit)
        assert (clip.features(z) - whole).abs().max() < 1e-5


@pytest.fixture(scope="module")
def small() -> open_clip.CLIP:
    torch.manual_seed(0)
    return create_small_clip(small_clip_config(WORDS)).eval()


@pytest.fixture(scope="module")
def vit_b_16() -> SplitCLIP:
    return load_clip(ModelConfig("ViT-B-16-quickgelu", pretrained="none", block=-2))


@pytest.mark.parametrize("block", range(-6, 6))
def test_halves_equal_the_whole_at_every_block(small: open_clip.CLIP, block: int) -> None:
    clip = split(small, block)
    assert (clip.block, clip.n_blocks, clip.grid) == (block % 6, 6, (14, 14))
    assert (clip.d_vit, clip.d_embed) == (192, 128)
    assert_halves_equal_whole(clip)


@pytest.mark.parametrize("block", [-2, 5])
def test_halves_equal_the_whole_on_vit_b_16(vit_b_16: SplitCLIP, block: int) -> None:
    assert_halves_equal_whole(SplitCLIP(vit_b_16.model, vit_b_16.tokenizer, block), n_images=1)


@pytest.mark.parametrize(
    "vision",
    [
        {"no_ln_pre": True},
        {"pool_type": "avg"},
        {"pool_type": "avg", "final_ln_after_pool": True},
        {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
        {"patch_dropout": 0.5},
        {"ls_init_value": 0.1},
        {"qk_norm": True, "scale_attn": True},
        {"pos_embed_type": "sin_cos_2d"},
        {"image_size": (32, 48)},
    ],
    ids=str,
)
def test_halves_equal_the_whole_for_every_kind_of_tower(vision: dict[str, Any]) -> None:
    for block in range(3):
        assert_halves_equal_whole(split(tiny_clip(**vision), block))


def test_halves_equal_the_whole_when_blocks_want_tokens_first() -> None:
    model = tiny_clip()
    model.visual.transformer = Transformer(32, layers=3, heads=2, batch_first=False)
    assert_halves_equal_whole(split(model, 1))


@pytest.mark.parametrize("name", ["small", "tiny"])
def test_neurons_are_what_the_mlp_adds_its_output_from(name: str, small: open_clip.CLIP) -> None:
    model = small if name == "small" else tiny_clip()
    clip = SplitCLIP(model.eval(), WordTokenizer(WORDS), block=1)
    size = clip.visual.image_size[0]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        neurons, z = clip.neurons(images), clip.tokens(images)
        block = clip.visual.transformer.resblocks[1]
        before = clip._run(clip.visual._embeds(images), 0, 1)
        attended = before + block.ls_1(block.attention(block.ln_1(before)))
        again = attended + block.ls_2(block.mlp.c_proj(neurons))
    assert neurons.shape == (2, z.shape[1], 4 * clip.d_vit)
    assert torch.allclose(again, z, atol=1e-5)
    assert not block.mlp.gelu._forward_hooks


def test_block_is_where_open_clip_says_it_is(small: open_clip.CLIP) -> None:
    images = torch.randn(2, 3, 112, 112)
    out = small.visual.forward_intermediates(images, [4], output_fmt="NLC")
    torch.testing.assert_close(
        split(small, 4).tokens(images)[:, 1:], out["image_intermediates"][0]
    )


def test_gradients_reach_the_tokens_through_the_second_half(small: open_clip.CLIP) -> None:
    clip = split(small)
    z = torch.randn(2, 197, 192, requires_grad=True)
    clip.classify(z, clip.text_features(CLASSES, TEMPLATES)).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_state_dict_holds_each_weight_once(small: open_clip.CLIP) -> None:
    assert len(split(small).state_dict()) == len(small.state_dict())


# --- the zero-shot head ---------------------------------------------------------------------


def test_text_features_are_unit_norm_and_follow_the_order_of_classes(
    small: open_clip.CLIP,
) -> None:
    clip = split(small)
    x = clip.text_features(CLASSES, TEMPLATES)
    assert x.shape == (4, 128)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(4))
    order = [2, 0, 3, 1]
    permuted = clip.text_features([CLASSES[i] for i in order], TEMPLATES, batch=3)
    torch.testing.assert_close(permuted, x[order])


def test_text_features_equal_open_clips_classifier(vit_b_16: SplitCLIP) -> None:
    templates = OPENAI_TEMPLATES[:2]
    expected = open_clip.build_zero_shot_classifier(
        vit_b_16.model, vit_b_16.tokenizer, CLASSES, templates
    )
    torch.testing.assert_close(vit_b_16.text_features(CLASSES, templates), expected.T)


def test_templates_are_strings_or_functions() -> None:
    assert len(OPENAI_TEMPLATES) == 80
    clip = split(create_small_clip(small_clip_config(WORDS)).eval())
    as_functions = [lambda name, t=t: t.format(name) for t in TEMPLATES]
    torch.testing.assert_close(
        clip.text_features(CLASSES, TEMPLATES), clip.text_features(CLASSES, as_functions)
    )
    with pytest.raises(ValueError, match="at least one class"):
        clip.text_features([], TEMPLATES)


@pytest.mark.parametrize(
    "template",
    ["a photo", "{name}", "", "{0}", lambda name: "a photo"],
    ids=["words", "field", "empty", "number", "function"],
)
def test_a_template_without_a_place_for_the_name_is_refused(
    template: Any, small: open_clip.CLIP
) -> None:
    with pytest.raises(ValueError, match=r"template .* has no \{\} for the name of a class"):
        split(small).text_features(CLASSES, [TEMPLATES[0], template])


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["a very " * 60 + "cat", "a very " * 60 + "dog"], "a very cat' and '.* a very dog'"),
        (["Owl", "crane", "owl"], "'Owl' and 'owl' are one text to CLIP"),
        (["crane", "crane"], ""),  # ImageNet has two names twice
        (["a very " * 60 + "cat", "cat"], ""),
    ],
)
def test_names_that_the_tokenizer_makes_equal_are_named(names: list[str], warned: str) -> None:
    model = tiny_clip()
    clip = SplitCLIP(model, open_clip.SimpleTokenizer(context_length=model.context_length), 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features = clip.text_features(names, ["a {}", "the {}"])
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == bool(warned)
    assert torch.equal(features[0], features[-1]) == (bool(warned) or names[0] == names[-1])
    for message in messages:
        assert re.search(warned, message)
        assert len(message) <= 200


def test_predict_gives_open_clips_logits_in_any_batch_size(small: open_clip.CLIP) -> None:
    clip = split(small)
    head = clip.text_features(CLASSES, TEMPLATES)
    pictures = torch.randint(0, 256, (5, 3, 112, 112), dtype=torch.uint8)
    images = clip.preprocess(pictures)
    expected = small.logit_scale.exp() * small.encode_image(images, normalize=True) @ head.T
    torch.testing.assert_close(predict(clip, pictures, head, batch=2), expected.detach())
    assert clip.logit_scale == pytest.approx(1 / 0.07)


def test_accuracy_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 0.75


# --- the tokenizer --------------------------------------------------------------------------


@given(st.lists(st.sampled_from(WORDS), max_size=30))
def test_words_survive_a_round_trip(words: list[str]) -> None:
    tokenizer = WordTokenizer(WORDS)
    (ids,) = tokenizer(" ".join(words)).tolist()
    n = len(words)
    assert [WORDS[i - 1] for i in ids[1 : n + 1]] == words
    assert (ids[0], ids[n + 1]) == (tokenizer.start, tokenizer.end) == (12, 13)
    assert ids[n + 2 :] == [0] * (30 - n)
    assert max(ids) == ids[n + 1] == tokenizer.vocab_size - 1  # where open_clip reads the text


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
@settings(max_examples=20)
def test_case_and_punctuation_do_not_matter(words: list[str]) -> None:
    tokenizer = WordTokenizer(WORDS)
    loud = ", ".join(words).upper() + "!"
    assert torch.equal(tokenizer(loud), tokenizer("_".join(words)))


def test_tokenizer_takes_lists() -> None:
    ids = WordTokenizer(WORDS, context_length=4)(["a cat", "dog"])
    assert ids.dtype == torch.long
    assert ids.tolist() == [[12, 1, 8, 13], [12, 9, 13, 0]]


def test_tokenizer_names_the_unknown_word() -> None:
    with pytest.raises(ValueError, match=r"'unicorn'.*a red unicorn"):
        WordTokenizer(WORDS)("a red unicorn")


def test_tokenizer_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="more than 2 words in 'a red cat'"):
        WordTokenizer(WORDS, context_length=4)("a red cat")


@pytest.mark.parametrize("words", [["a", "a"], ["Cat"], ["red cat"], [""], ["close-up"]])
def test_tokenizer_refuses_words_it_could_never_meet(words: list[str]) -> None:
    with pytest.raises(ValueError, match="twice, or not lower case"):
        WordTokenizer(words)


# --- preprocessing --------------------------------------------------------------------------


def picture(height: int, width: int, low: int, high: int) -> Tensor:
    """Noise, a ramp and a checkerboard (1, 3, height, width), uint8 from `low` to `high`."""
    noise = torch.rand(height, width, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, width).expand(height, width)
    checks = (torch.arange(height)[:, None] // 7 + torch.arange(width) // 7) % 2
    return (low + (high - low) * torch.stack([noise, ramp, checks])[None]).to(torch.uint8)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize(
    "size", [(112, 112), (200, 300), (301, 150), (60, 80), (112, 150), (1000, 300)]
)
def test_preprocess_equals_open_clips_transform_of_pil_images(
    small: open_clip.CLIP, size: tuple[int, int], resize_mode: str
) -> None:
    clip = split(small)
    clip.preprocess_cfg.resize_mode = resize_mode

    def levels_apart(pictures: Tensor) -> Tensor:
        image = Image.fromarray(pictures[0].permute(1, 2, 0).numpy())
        expected = image_transform_v2(clip.preprocess_cfg, is_train=False)(image)
        return (clip.preprocess(pictures)[0] - expected).abs() * clip.std * 255

    # Both round to 8 bits after each of two passes, so they may be 2 levels apart.
    assert levels_apart(picture(*size, 32, 223)).max() < 2.01
    # Edges between black and white overshoot and are clipped between the passes, which Pillow
    # does in the other order for tall pictures: far apart in few pixels, close in the mean.
    assert levels_apart(picture(*size, 0, 255)).mean() < 1


def test_preprocess_normalises_with_the_models_own_numbers(vit_b_16: SplitCLIP) -> None:
    clip = vit_b_16
    assert clip.mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    black = clip.preprocess(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    torch.testing.assert_close(black[0, :, :1, :1], -clip.mean / clip.std)


# --- files ----------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, small: open_clip.CLIP) -> Path:
    save_small_clip(tmp_path / "small_clip", small, small_clip_config(WORDS), WORDS)
    return tmp_path


def test_small_clip_survives_a_round_trip_through_float16(
    data: Path, small: open_clip.CLIP
) -> None:
    clip = load_clip(ModelConfig("small", block=3), data=data)
    assert (clip.block, clip.visual.preprocess_cfg["mean"]) == (3, [0.5] * 3)
    assert not clip.model.training
    assert not any(p.requires_grad for p in clip.parameters())
    for name, x in clip.model.state_dict().items():
        assert x.dtype == torch.float32
        assert torch.equal(x, small.state_dict()[name].half().float()), name
    images = torch.randn(2, 3, 112, 112)
    same = (clip.features(clip.tokens(images)) * small.encode_image(images, normalize=True)).sum(
        -1
    )
    assert same.min() > 0.999


def test_a_small_clip_of_random_weights_is_the_same_every_time(data: Path) -> None:
    clips = [load_clip(ModelConfig("small", p), data=data) for p in ("", "none", "none")]
    kept, first, again = (clip.visual.conv1.weight for clip in clips)
    assert torch.equal(first, again)
    assert not torch.equal(first, kept)


def test_saved_files_are_safetensors_and_json_and_nothing_else(data: Path) -> None:
    directory = data / "small_clip"
    assert sorted(p.name for p in directory.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert json.loads((directory / CONFIG_FILE).read_text())["words"] == WORDS
    raw = (directory / WEIGHTS_FILE).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    header.pop("__metadata__", None)
    assert {t["dtype"] for t in header.values()} == {"F16"}
    n_bytes = max(t["data_offsets"][1] for t in header.values())
    assert len(raw) == 8 + int.from_bytes(raw[:8], "little") + n_bytes  # no room for a pickle


def test_open_clip_reads_the_saved_directory_itself(data: Path) -> None:
    model = open_clip.create_model(f"local-dir:{data / 'small_clip'}").eval()
    images = torch.randn(1, 3, 112, 112)
    clip = load_small_clip(data / "small_clip")
    torch.testing.assert_close(
        clip.features(clip.tokens(images)), model.encode_image(images, True)
    )


def test_vocabulary_of_another_size_is_not_saved(tmp_path: Path, small: open_clip.CLIP) -> None:
    with pytest.raises(ValueError, match="other words than these 10"):
        save_small_clip(tmp_path, small, small_clip_config(WORDS), WORDS[:-1])
    assert not list(tmp_path.iterdir())


def test_missing_small_clip_says_what_to_run(data: Path) -> None:
    (data / "small_clip" / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS_FILE}: run `python -m recipes"):
        load_clip(ModelConfig("small"), data=data)


@pytest.mark.parametrize("damage", ["truncated", "other weights"])
def test_weights_that_do_not_fit_are_named(data: Path, damage: str) -> None:
    path = data / "small_clip" / WEIGHTS_FILE
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} does not fit {CONFIG_FILE}"):
        load_clip(ModelConfig("small"), data=data)


# --- weights of open_clip: a tiny model in its registry, no network ---------------------------


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of "tiny", which open_clip knows as long as the test runs; unpickling fails."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", tiny_config())
    tag = {"hf_hub": "someone/tiny/", "mean": (0.1,) * 3, "std": (0.2,) * 3, "quick_gelu": False}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"tagged": tag})
    for name in ("torch.load", "torch.jit.load"):
        monkeypatch.setattr(name, lambda *args, **kwargs: pytest.fail("something was unpickled"))
    save_file(tiny_clip().state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def assert_loaded(clip: SplitCLIP, weights: Path) -> None:
    for name, x in load_file(weights).items():
        assert torch.equal(clip.model.state_dict()[name], x), name


def test_load_clip_reads_a_safetensors_file(weights: Path) -> None:
    assert_loaded(load_clip(ModelConfig("tiny", str(weights))), weights)


def test_a_tags_weights_may_lie_in_a_local_file(weights: Path) -> None:
    clip = load_clip(ModelConfig("tiny", "tagged", str(weights)))
    assert_loaded(clip, weights)
    assert clip.mean.flatten().tolist() == pytest.approx([0.1] * 3)  # as the tag says
    with pytest.raises(FileNotFoundError, match=r"model.weights: no file /nowhere"):
        load_clip(ModelConfig("tiny", "tagged", "/nowhere"))


def test_load_clip_takes_a_tag_from_the_cache(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openclip, "try_to_load_from_cache", lambda *_: str(weights))
    monkeypatch.setattr(openclip, "hf_hub_download", lambda *_, **__: pytest.fail("download"))
    clip = load_clip(ModelConfig("tiny", "tagged"))
    assert_loaded(clip, weights)
    assert clip.mean.flatten().tolist() == pytest.approx([0.1] * 3)
    assert capsys.readouterr().out == ""


def test_load_clip_says_what_it_downloads(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(repo: str, name: str, dry_run: bool = False) -> object:
        assert (repo, name) == ("someone/tiny", WEIGHTS_FILE)
        return SimpleNamespace(file_size=3_200_000) if dry_run else str(weights)

    monkeypatch.setattr(openclip, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(openclip, "hf_hub_download", download)
    assert_loaded(load_clip(ModelConfig("tiny", "tagged")), weights)
    assert capsys.readouterr().out == f"downloading someone/tiny/{WEIGHTS_FILE} (3 MB)\n"


def test_tag_without_network_asks_for_a_file(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(openclip, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(openclip, "hf_hub_download", offline)
    with pytest.raises(FileNotFoundError, match=r"Download https://hug.*someone/tiny/"):
        load_clip(ModelConfig("tiny", "tagged"))


def test_weights_of_another_model_are_refused(weights: Path) -> None:
    state = {name: x for name, x in load_file(weights).items() if "resblocks.2" not in name}
    save_file(state, weights)
    with pytest.raises(ValueError, match=r"tiny.safetensors does not hold the weights of tiny"):
        load_clip(ModelConfig("tiny", str(weights)))


@pytest.mark.parametrize("name", ["weights.pt", "open_ai"])
def test_pickles_and_unknown_tags_are_refused(weights: Path, name: str) -> None:
    (weights.parent / "weights.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"neither a .safetensors file nor a tag of tiny \(tagg"):
        load_clip(ModelConfig("tiny", str(weights.parent / name)))


# --- what is known of a local file --------------------------------------------------------------

MEANS = {"mean": [0.3] * 3, "std": [0.4] * 3}


def beside(weights: Path, quick_gelu: bool = False, **preprocess: Any) -> None:
    """Write open_clip's configuration beside weights."""
    cfg = {"model_cfg": {"quick_gelu": quick_gelu}, "preprocess_cfg": preprocess}
    (weights.parent / CONFIG_FILE).write_text(json.dumps(cfg))


@pytest.fixture
def quick(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Like `weights`, of which there is "tiny-quickgelu", too; with a tag of OpenAI's."""
    config = {**tiny_config(), "quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", config)
    tags = {
        "tagged": {"hf_hub": "someone/tiny/", "mean": (0.1,) * 3, "std": (0.2,) * 3},
        "openai": {"hf_hub": "timm/tiny.openai/", "mean": (0.5,) * 3, "quick_gelu": True},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    quick_tags = {name: tag for name, tag in tags.items() if name == "openai"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-quickgelu", quick_tags)
    return weights


def test_a_file_that_says_nothing_is_asked_about(weights: Path) -> None:
    with pytest.warns(UserWarning, match=r"tiny.safetensors does not say .*Write its tag as mod"):
        load_clip(ModelConfig("tiny", str(weights)))


def test_a_tag_is_a_word_of_its_own_in_a_name(quick: Path) -> None:
    with pytest.warns(UserWarning, match="does not say its mean"):
        load_clip(ModelConfig("tiny", str(moved(quick, "nonopenai.safetensors"))))


def moved(weights: Path, name: str) -> Path:
    target = weights.parent / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return weights.rename(target)


def test_what_stands_beside_a_file_is_applied(quick: Path) -> None:
    beside(quick, quick_gelu=True, **MEANS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_clip(ModelConfig("tiny-quickgelu", str(quick)))
    assert clip.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert clip.std.flatten().tolist() == pytest.approx([0.4] * 3)


@pytest.mark.parametrize(
    ("model", "pretrained", "name", "config", "said"),
    [
        ("tiny", "", "w.safetensors", {"quick_gelu": True}, "open_clip_config.json differ in"),
        ("tiny-quickgelu", "", "w.safetensors", MEANS, "open_clip_config.json differ in their"),
        ("tiny", "", "tiny-openai.safetensors", None, "of the tag 'openai', differ in their GELU"),
        ("tiny", "", "models--timm--tiny.openai/x.safetensors", None, "of the tag 'openai'"),
        ("tiny-quickgelu", "", "tiny_tagged.safetensors", None, "of the tag 'tagged', differ"),
        ("tiny", "tagged", "w.safetensors", MEANS, "another (mean|std) than the tag 'tagged'"),
        ("tiny", "tagged", "openai.safetensors", None, "of the tag 'openai', differ in"),
        ("tiny", "", "w.safetensors", {"mean": 0.5}, "mean is 0.5, expected three numbers"),
        ("tiny", "", "w.safetensors", {"std": [0.5]}, "std is .0.5., expected three numbers"),
    ],
)
def test_a_file_that_is_another_than_the_profile_says_is_refused(
    model: str, pretrained: str, name: str, config: dict[str, Any] | None, said: str, quick: Path
) -> None:
    path = moved(quick, name)
    if config is not None:
        beside(path, **config)
    with pytest.raises(ValueError, match=said):
        load_clip(ModelConfig(model, pretrained or str(path), str(path) if pretrained else ""))


@pytest.mark.parametrize("name", ["openai.safetensors", "models--timm--tiny.openai/w.safetensors"])
def test_a_tag_in_the_path_is_applied(name: str, quick: Path) -> None:
    clip = load_clip(ModelConfig("tiny-quickgelu", str(moved(quick, name))))
    assert clip.mean.flatten().tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("pretrained", ["tagged", ""])
def test_weights_of_other_shapes_are_refused(pretrained: str, weights: Path) -> None:
    """open_clip would stretch the positions of another size of pictures, without a word."""
    state = load_file(weights)
    positions = state["visual.positional_embedding"]
    state["visual.positional_embedding"] = torch.zeros(1 + 4 * (len(positions) - 1), 32)
    save_file(state, weights)
    config = ModelConfig("tiny", pretrained or str(weights), str(weights) if pretrained else "")
    with pytest.raises(ValueError, match=r"weights of tiny: visual.positional_embedding is \(17,"):
        load_clip(config)


def test_others_files_in_place_of_weights_are_named(weights: Path) -> None:
    config = ModelConfig("tiny", str(weights))
    save_file({"vision_model.embeddings.class_embedding": torch.zeros(2)}, weights)
    with pytest.raises(ValueError, match=f"is transformers' file: take {WEIGHTS_FILE}"):
        load_clip(config)
    torch.save({"x": torch.zeros(2)}, weights)
    with pytest.raises(ValueError, match=r"is a pickle: take the same weights as .safetensors"):
        load_clip(config)
    weights.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="is a pointer of Git LFS"):
        load_clip(config)


def test_what_a_trainer_wrapped_is_read(weights: Path) -> None:
    state = load_file(weights)
    save_file({f"module.{name}": x for name, x in state.items()}, weights)
    clip = load_clip(ModelConfig("tiny", "tagged", str(weights)))
    for name, x in state.items():
        assert torch.equal(clip.model.state_dict()[name], x), name


# --- other errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("RN50"), "RN50: the image tower is a timm model or a ResNet"),
        (ModelConfig("ViT-B-16-SigLIP"), "timm model"),
        (ModelConfig("xlm-roberta-base-ViT-B-32"), "downloaded by transformers"),
        (ModelConfig("hf-hub:someone/model"), "no model 'hf-hub:someone/model'"),
        (ModelConfig("ViT-B-16", "openai"), "add -quickgelu"),
    ],
    ids=str,
)
def test_models_that_cannot_be_cut_are_refused(config: ModelConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_clip(config)


def test_tokens_in_bfloat16_are_those_of_float32_but_for_rounding(weights: Path) -> None:
    config = ModelConfig("tiny", str(weights), precision="bfloat16")
    fast, exact = load_clip(config), load_clip(ModelConfig("tiny", str(weights)))
    x = torch.randn(2, 3, *exact.visual.image_size)
    z, z_fast = exact.tokens(x), fast.tokens(x)
    assert z_fast.dtype == torch.float32
    assert 0 < (z_fast - z).norm() / z.norm() < 0.02
    assert torch.equal(fast.features(z), exact.features(z))  # the second half is exact
    assert fast.neurons(x).shape == exact.neurons(x).shape
    x.requires_grad_()
    assert (fast.tokens(x) - z).norm() < 1e-5 * z.norm()  # exact where something is learnt
    assert_loaded(fast, weights)


def test_missing_weights_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no file /nowhere/x\.safetensors"):
        load_clip(ModelConfig(pretrained="/nowhere/x.safetensors"))


def test_split_refuses_other_towers() -> None:
    with pytest.raises(TypeError, match="ModifiedResNet, not open_clip's VisionTransformer"):
        split(tiny_clip(layers=[1, 1, 1, 1], width=8, head_width=8))
    with pytest.raises(ValueError, match="pool_type 'none'"):
        split(tiny_clip(pool_type="none"))


@pytest.mark.parametrize("block", [-4, 3])
def test_block_that_is_not_there_is_refused(block: int) -> None:
    with pytest.raises(ValueError, match=f"block {block}: the image tower has 3 blocks"):
        split(tiny_clip(), block)


def test_wrong_shapes_are_named() -> None:
    clip = split(tiny_clip())
    with pytest.raises(ValueError, match=r"tokens expects float images.*\(1, 3, 30, 32\)"):
        clip.tokens(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"torch.uint8.*call preprocess first"):
        clip.tokens(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"z \(b, \*\(5, 32\)\), got \(1, 4, 32\)"):
        clip.features(torch.zeros(1, 4, 32))
    with pytest.raises(ValueError, match="expects uint8 pictures"):
        clip.preprocess(torch.zeros(1, 3, 32, 32))


def test_another_block_shares_the_weights() -> None:
    clip = load_clip(ModelConfig("small", ""))
    other, expected = clip.at_block(0), load_clip(ModelConfig("small", "", block=0))
    assert other.block == 0 != clip.block
    assert other.model is clip.model
    images = torch.rand(2, 3, *clip.visual.image_size)
    assert torch.equal(other.tokens(images), expected.tokens(images))
    assert clip.in_bfloat16().at_block(0).first is not None
