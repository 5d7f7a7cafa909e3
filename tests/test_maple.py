"""Prompts do to both encoders what MaPLe says, and are learnt with CLIP frozen."""

import math
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F

from patchsae_lib import maple
from patchsae_lib.ablation import at_random, latent_effects, mask_latents
from patchsae_lib.artefacts import DATA, weights_hash
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.evaluation import HeldOut, evaluate_sae
from patchsae_lib.interop.openclip import WordTokenizer, load_small_clip
from patchsae_lib.latents import scan
from patchsae_lib.maple import (
    AdaptedCLIP,
    PromptLearner,
    Prompts,
    adapt,
    learning_rate,
    run_of,
    train_prompts,
)
from patchsae_lib.pictures import TEMPLATE
from patchsae_lib.pictures.shots import base_classes, few_shot
from patchsae_lib.profiles import PromptsConfig
from patchsae_lib.sae import SAE, explained_variance
from patchsae_lib.world import TASKS, World

WORDS = ["a", "photo", "of", "red", "cat", "dog", "boat"]
NAMES = ["cat", "red dog", "boat"]
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 4, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 64, "width": 24, "heads": 2, "layers": 3}
SHOT = PromptsConfig(depth=2, shots=2, epochs=3, augment=False)


def tiny(block: int = -2, kind: type = open_clip.CLIP) -> SplitCLIP:
    torch.manual_seed(0)
    text = TEXT | ({"no_causal_mask": True} if kind is open_clip.CustomTextCLIP else {})
    model = kind(embed_dim=16, vision_cfg=VISION, text_cfg=text).eval().requires_grad_(False)
    return SplitCLIP(model, WordTokenizer(WORDS, 16), block)


def random_prompts(
    text_depth: int = 3, visual_depth: int = 3, n: int = 2, seed: int = 0
) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    return Prompts(
        torch.randn(text_depth, n, 24, generator=generator),
        torch.randn(visual_depth, n, 32, generator=generator),
    )


@pytest.fixture(scope="module")
def clip() -> SplitCLIP:
    return tiny()


@pytest.fixture(scope="module")
def small() -> SplitCLIP:
    return load_small_clip(DATA / "small_clip", -2)


def plain_image_features(model, images, visual):
    """MaPLe's image encoder as its paper tells it, token by token."""
    tower = model.visual
    patches = tower.conv1(images).flatten(2).transpose(1, 2)
    cls = tower.class_embedding.expand(len(images), 1, -1)
    x = torch.cat([cls, patches], 1) + tower.positional_embedding
    n = x.shape[1]
    x = torch.cat([x, visual[0].expand(len(images), -1, -1)], 1)
    x = tower.ln_pre(x)
    for i, block in enumerate(tower.transformer.resblocks):
        if 0 < i < len(visual):
            x[:, n:] = visual[i]
        x = block(x)
    return F.normalize(tower.ln_post(x[:, 0]) @ tower.proj, dim=-1)


def plain_text_features(model, ids, text):
    """MaPLe's text encoder likewise."""
    x = model.token_embedding(ids)
    x[:, 1 : 1 + text.shape[1]] = text[0]
    x = x + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        if 0 < i < len(text):
            x[:, 1 : 1 + text.shape[1]] = text[i]
        x = block(x, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)]
    return F.normalize(x @ model.text_projection, dim=-1)


# --- an adapted model ---------------------------------------------------------------------------


@pytest.mark.parametrize("block", [0, 1, -2, -1])
@pytest.mark.parametrize("depth", [1, 2, 3])
@torch.no_grad()
def test_an_adapted_model_is_maple_in_two_halves(block: int, depth: int) -> None:
    clip, prompts = tiny(block), random_prompts(depth, depth)
    adapted = adapt(clip, prompts, NAMES)
    images = torch.randn(2, 3, 32, 32)
    z = adapted.tokens(images)
    assert z.shape == (2, 1 + 4 + 2, 32)
    assert (adapted.n_tokens, adapted.n_prompts) == (5, 2)
    wanted = plain_image_features(clip.model, images, prompts.visual)
    assert (adapted.features(z) - wanted).abs().max() < 1e-5
    ids = clip.tokenizer([f"a photo of a {name}." for name in NAMES])
    wanted = plain_text_features(clip.model, ids, prompts.text)
    assert (adapted.text - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_without_prompts_it_is_the_same_clip(clip: SplitCLIP) -> None:
    nothing = Prompts(torch.empty(0, 2, 0), torch.empty(0, 2, 0))
    adapted = adapt(clip, nothing, NAMES)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(adapted.tokens(images), clip.tokens(images))
    assert torch.equal(adapted.text, clip.text_features(NAMES, ["a photo of a {}."]))


@torch.no_grad()
def test_one_encoder_alone_leaves_the_other_as_it_was(clip: SplitCLIP) -> None:
    images, template = torch.randn(2, 3, 32, 32), ["a photo of a {}."]
    prompts = random_prompts()
    text_only = adapt(clip, replace(prompts, visual=torch.empty(0, 2, 0)), NAMES)
    assert torch.equal(text_only.tokens(images), clip.tokens(images))
    assert not torch.equal(text_only.text, clip.text_features(NAMES, template))
    picture_only = adapt(clip, replace(prompts, text=torch.empty(0, 2, 0)), NAMES)
    assert torch.equal(picture_only.text, clip.text_features(NAMES, template))
    assert picture_only.n_prompts == 2


@torch.no_grad()
def test_clip_itself_is_not_touched(clip: SplitCLIP) -> None:
    images = torch.randn(1, 3, 32, 32)
    before = clip.tokens(images), clip.text_features(NAMES, ["{}"]), weights_hash(clip.model)
    adapt(clip, random_prompts(), NAMES).features(
        adapt(clip, random_prompts(), NAMES).tokens(images)
    )
    assert torch.equal(clip.tokens(images), before[0])
    assert torch.equal(clip.text_features(NAMES, ["{}"]), before[1])
    assert weights_hash(clip.model) == before[2]


@torch.no_grad()
def test_text_towers_with_a_module_of_their_own() -> None:
    custom = tiny(kind=open_clip.CustomTextCLIP)
    prompts = random_prompts()
    adapted = adapt(custom, prompts, NAMES)
    plain = custom.text_features(NAMES, ["a photo of a {}."])
    assert not torch.allclose(adapted.text, plain)
    words = custom.model.text.token_embedding(custom.tokenizer(["a photo of a cat"]))[0, 1:3]
    unchanged = adapt(custom, replace(prompts, text=words[None]), NAMES)
    assert (unchanged.text - plain).abs().max() < 1e-6


def test_underscores_of_class_names_are_spaces(clip: SplitCLIP) -> None:
    prompts = random_prompts()
    heads = [adapt(clip, prompts, [name]).text for name in ("red_dog", "red dog")]
    assert torch.equal(*heads)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            Prompts(torch.zeros(1, 2, 25), torch.zeros(1, 2, 32)),
            r"text prompts .*\(1, 2, 25\).*24",
        ),
        (Prompts(torch.zeros(1, 2, 24), torch.zeros(1, 2, 33)), r"visual .*\(1, 2, 33\).*32"),
        (Prompts(torch.zeros(4, 2, 24), torch.zeros(4, 2, 32)), r"text .*\(4, 2, 24\).*3 blocks"),
        (Prompts(torch.zeros(3, 2, 24), torch.zeros(5, 2, 32)), r"visual .*4 blocks"),
        (Prompts(torch.zeros(1, 5, 24), torch.zeros(1, 5, 32)), r"5 context tokens.*only 4"),
        (Prompts(torch.zeros(1, 2, 24), torch.zeros(1, 2, 32), "a photo"), r"one \{\}"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(
    clip: SplitCLIP, prompts: Prompts, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adapt(clip, prompts, NAMES)


# --- statistics and masks of one ----------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(small: SplitCLIP):
    """The small CLIP with prompts, an autoencoder, six pictures."""
    generator = torch.Generator().manual_seed(0)
    prompts = Prompts(
        torch.randn(2, 2, 128, generator=generator) * 0.02,
        torch.randn(2, 2, 192, generator=generator),
        "a photo of a {}",
    )
    world = World("objects", "test", 6)
    adapted = adapt(small, prompts, world.class_names[:3])
    with torch.no_grad():
        z = adapted.tokens(adapted.preprocess(world.batch(range(6))))
    sae = SAE(192, 64).eval().requires_grad_(False).fold(float(z.norm(dim=-1).mean()))
    sae.b_dec.copy_(z.mean((0, 1)))
    return adapted, sae, world, z


def test_a_scan_counts_prompts_only_when_asked(measured) -> None:
    adapted, sae, world, _ = measured
    assert scan(adapted, sae, world, progress=False).tokens == 6 * 197
    with_prompts = scan(adapted, sae, world, prompts=True, progress=False)
    assert with_prompts.tokens == 6 * 199


@torch.no_grad()
def test_masks_leave_the_prompts_alone_unless_asked(measured, monkeypatch) -> None:
    adapted, sae, _, z = measured
    classified = []
    classify = AdaptedCLIP.classify

    def spy(self, x, text):
        classified.append(x)
        return classify(self, x, text)

    monkeypatch.setattr(AdaptedCLIP, "classify", spy)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for prompts in (False, True):
        classified.clear()
        rankings = {"random": at_random(64)}
        mask_latents(adapted, sae, z, labels, adapted.text, rankings, [0], prompts=prompts)
        original, all_on, all_off, nothing_on_nothing_off = classified
        n = 199 if prompts else 197
        assert torch.equal(original, z)
        assert torch.allclose(all_on[:, :n], sae(z[:, :n]), atol=1e-4)
        assert torch.equal(all_off[:, :n], sae.b_dec.expand(6, n, -1))
        tails = [all_on, all_off, *nothing_on_nothing_off.split(6)]
        assert all(torch.equal(x[:, n:], z[:, n:]) for x in tails)


@torch.no_grad()
def test_the_error_added_back_restores_every_prediction(measured) -> None:
    adapted, sae, _, z = measured
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    rankings = {"r": at_random(64)}
    result = mask_latents(adapted, sae, z, labels, adapted.text, rankings, [64], error=True)
    assert torch.equal(result.predictions["r"][0, 0], result.original)


def test_effects_of_latents_are_those_of_image_tokens(measured) -> None:
    adapted, sae, _, z = measured
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    of_latents, of_tokens = latent_effects(adapted, sae, z, labels, adapted.text)
    assert (of_latents.shape, of_tokens.shape) == ((6, 64), (6, 199))
    assert of_tokens[:, 197:].abs().max() == 0
    assert torch.allclose(of_latents.sum(1), of_tokens.sum(1), atol=1e-4)


@torch.no_grad()
def test_an_autoencoder_is_measured_on_image_tokens(measured) -> None:
    adapted, sae, _, z = measured
    labels, text = torch.tensor([0, 1, 2, 0, 1, 2]), adapted.text
    held_out = HeldOut(adapted, z, labels, text, text[labels])
    report = evaluate_sae(sae, held_out)
    image = z[:, :197]
    explained = float(explained_variance(image, sae(image)))
    assert report.explained_variance == pytest.approx(explained, 1e-4)
    replaced = torch.cat([sae(image), z[:, 197:]], 1)
    wanted = adapted.classify(replaced, text).argmax(1) == labels
    assert report.accuracy == pytest.approx(float(wanted.float().mean()))


# --- learning -----------------------------------------------------------------------------------


def test_half_of_the_classes_are_base_and_an_odd_one_too() -> None:
    assert [base_classes(n) for n in (2, 3, 8, 35)] == [1, 2, 4, 18]
    assert all(base_classes(len(t.classes)) == len(t.base) for t in TASKS.values())
    with pytest.raises(ValueError, match=r"need two classes or more, not 1"):
        base_classes(1)


def test_few_shot_takes_as_many_of_each_base_class_and_no_others() -> None:
    labels = torch.arange(5).repeat(10)
    chosen = few_shot(labels, 3, 4, seed=1)
    assert labels[chosen].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(chosen.unique()) == 12
    assert torch.equal(chosen, few_shot(labels, 3, 4, seed=1))
    assert not torch.equal(chosen, few_shot(labels, 3, 4, seed=2))


def test_a_class_with_fewer_pictures_than_shots_gives_all_it_has() -> None:
    chosen = few_shot(torch.tensor([0] * 9 + [1] * 3), 2, 4, 0)
    assert sorted(chosen[4:].tolist()) == [9, 10, 11]
    assert len(chosen) == 7


def test_no_pictures_and_one_class_are_errors() -> None:
    with pytest.raises(ValueError, match=r"class 1 has no pictures to learn from"):
        few_shot(torch.zeros(9), 2, 4, 0)
    with pytest.raises(ValueError, match=r"two or more, not 1"):
        few_shot(torch.zeros(9), 1, 4, 0)


def test_the_learning_rate_is_maples() -> None:
    config = PromptsConfig()
    rates = [learning_rate(config, epoch) for epoch in range(5)]
    cosine = [0.0035 * (1 + math.cos(math.pi * i / 5)) / 2 for i in range(4)]
    assert rates == pytest.approx([1e-5, *cosine])


def test_learning_starts_from_the_words(small: SplitCLIP) -> None:
    learner = PromptLearner(small, SHOT, "a photo of a {} flower")
    ids = torch.tensor([small.tokenizer.ids[word] for word in ("a", "photo")])
    assert torch.equal(learner.text[0], small.model.token_embedding(ids))
    prompts = learner()
    assert (prompts.text.shape, prompts.visual.shape) == ((2, 2, 128), (2, 2, 192))
    wanted = prompts.text[1] @ learner.weight[1] + learner.bias[1]
    assert torch.allclose(prompts.visual[1], wanted)


def test_the_maps_of_deep_prompts_start_equal(small: SplitCLIP) -> None:
    learner = PromptLearner(small, replace(SHOT, depth=3), "a photo of a {}")
    for start in (learner.weight, learner.bias):
        assert torch.equal(start[1], start[2])
        assert not torch.equal(start[0], start[1])
    bound = 128**-0.5
    assert 0.9 * bound < learner.weight.abs().max() <= bound


@pytest.mark.parametrize("encoders", ["both", "text", "picture"])
def test_learning_lowers_the_loss_and_nothing_of_clip_changes(small, encoders: str) -> None:
    before = weights_hash(small.model)
    world = World("grey", "train", 70)
    config = replace(SHOT, encoders=encoders, epochs=8, warmup_epochs=0, lr=0.1)
    prompts, history = train_prompts(
        small, world, TASKS["grey"].base, config, "a photo of a {}", progress=False
    )
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert [len(prompts.text), len(prompts.visual)] == [
        0 if encoders == "picture" else 2,
        0 if encoders == "text" else 2,
    ]
    assert weights_hash(small.model) == before
    assert all(p.grad is None and not p.requires_grad for p in small.parameters())
    adapt(small, prompts, TASKS["land"].novel)


def test_the_same_seed_gives_the_same_prompts_and_another_does_not(small, monkeypatch) -> None:
    world, names = World("land", "train", 64), TASKS["land"].base
    config = replace(SHOT, epochs=1, warmup_lr=1e-3, augment=True)
    augment, drawn = maple._augment, []
    monkeypatch.setattr(
        maple, "_augment", lambda x, seed: (drawn.append(seed), augment(x, seed))[1]
    )
    runs = [
        train_prompts(small, world, names, replace(config, seed=s), progress=False)[0]
        for s in (0, 0, 1)
    ]
    assert torch.equal(runs[0].text, runs[1].text)
    assert not torch.equal(runs[0].text, runs[2].text)
    n = len(drawn) // 3
    assert drawn[:n] == drawn[n : 2 * n]
    assert len(set(drawn)) == 2 * n > 2  # no two batches are cut alike


def test_a_killed_run_ends_where_it_would_have_ended(small, tmp_path, monkeypatch) -> None:
    world, names = World("land", "train", 64), TASKS["land"].base
    whole, _ = train_prompts(small, world, names, SHOT, progress=False)
    path = tmp_path / "prompts.safetensors"
    save = maple.save_checkpoint

    def save_and_die(*args, **state):
        save(*args, **state)
        raise KeyboardInterrupt

    monkeypatch.setattr(maple, "save_checkpoint", save_and_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_prompts(small, world, names, SHOT, checkpoint=path, progress=False)
    monkeypatch.setattr(maple, "save_checkpoint", save)
    resumed, history = train_prompts(small, world, names, SHOT, checkpoint=path, progress=False)
    assert torch.equal(resumed.text, whole.text)
    assert torch.equal(resumed.visual, whole.visual)
    assert [row["epoch"] for row in history] == [0, 1, 2]


def test_a_watched_training_ends_with_the_same_bits(small, tmp_path) -> None:
    world, names, path = World("land", "train", 64), TASKS["land"].base, tmp_path / "prompts"
    config, seen = replace(SHOT, warmup_lr=1e-3), []
    alone, _ = train_prompts(small, world, names, config, progress=False)
    watched, _ = train_prompts(
        small, world, names, config, checkpoint=path, progress=False,
        watch=lambda epochs, learner: seen.append((epochs, learner.text.detach().clone())),
    )  # fmt: skip
    assert torch.equal(alone.text, watched.text)
    assert torch.equal(alone.visual, watched.visual)
    epochs = [x for x, _ in seen]
    per_epoch = (len(epochs) - 1) // config.epochs
    assert epochs == pytest.approx([i / per_epoch for i in range(len(epochs))])
    assert torch.equal(seen[0][1], PromptLearner(small, config, TEMPLATE).text)
    assert torch.equal(seen[-1][1], watched.text)
    train_prompts(
        small, world, names, config, checkpoint=path, progress=False,
        watch=lambda epochs, learner: seen.append((epochs, learner.text.detach().clone())),
    )  # fmt: skip
    assert seen[-1][0] == config.epochs  # of a training that is over, its end
    assert torch.equal(seen[-1][1], watched.text)


def test_a_checkpoint_of_other_classes_is_set_aside(small, tmp_path) -> None:
    world, path = World("land", "train", 64), tmp_path / "prompts.safetensors"
    config, names = replace(SHOT, epochs=1), TASKS["land"].base
    train_prompts(small, world, names, config, checkpoint=path, progress=False)
    with pytest.warns(UserWarning, match=r"another run's checkpoint \(classes: .*starting again"):
        train_prompts(small, world, names[::-1], config, checkpoint=path, progress=False)
    assert path.with_name("prompts.safetensors.old").is_file()


def test_half_a_checkpoint_is_an_error(small, tmp_path) -> None:
    path = tmp_path / "prompts.safetensors"
    path.write_bytes(b"\0" * 100)
    world = World("land", "train", 64)
    with pytest.raises(ValueError, match=r"not a whole checkpoint"):
        train_prompts(small, world, TASKS["land"].base, SHOT, checkpoint=path, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 4}, r"text prompts .* \(4, 2, 128\), but this encoder has 3 blocks"),
        ({"depth": 7, "encoders": "picture"}, r"visual prompts .*, but this encoder has 6 blocks"),
        ({"n_ctx": 5}, "5 context tokens: the template .* has only 4"),
    ],
)
def test_what_cannot_be_learnt_is_an_error(small, change, message: str) -> None:
    world, config = World("land", "train", 64), replace(SHOT, **change)
    with pytest.raises(ValueError, match=message):
        train_prompts(small, world, TASKS["land"].base, config, progress=False)


@pytest.mark.parametrize(
    "change", [{"encoders": "all"}, {"depth": 0}, {"lr": 0.0}, {"shots": 0}, {"seed": -1}]
)
def test_settings_without_sense_are_errors(change) -> None:
    with pytest.raises(ValueError, match=r"prompts\."):
        PromptsConfig(**change)


def test_a_run_is_named_by_its_classes_pictures_config_and_clip(small) -> None:
    chosen = torch.tensor([3, 1])
    run = run_of(small, ("cat", "dog"), SHOT, "a {}", chosen)
    assert run["clip"] == "b48cce9ba60c10b7"  # as in the files that ship
    assert (run["classes"], run["template"], run["pictures"]) == (["cat", "dog"], "a {}", [3, 1])
    assert run["shots"] == SHOT.shots
