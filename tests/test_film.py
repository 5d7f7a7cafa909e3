"""The film of an adaptation: what is measured in a frame, and how it is shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from patchsae_lib import Study
from patchsae_lib.explorer import Checkpoints, Film, film_training
from patchsae_lib.explorer.film import Frame, by_class, choose, in_pictures
from patchsae_lib.explorer.filmstrip import film_data, words
from patchsae_lib.maple import Prompts
from patchsae_lib.profiles import StatisticsConfig


def frame(epochs: float | None, size: float = 1.0) -> Frame:
    """Two classes and three latents; the second class is taken for the first one half the time."""
    levels = size * torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    effects = size * torch.tensor([0.25, -0.25]).expand(2, 3, 2).clone()
    answers = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    return Frame(epochs, levels, effects, answers, 0.75)


def a_film(name: str = "cat") -> Film:
    frames = [frame(None), frame(0.0), frame(0.5), frame(1.0, 2.0)]
    return Film(
        f"<i>{name}", [4, 7, 9], [f"<b>{name}", "no name", "sky"], (name, "dog"), frames, 8
    )


def test_prompts_are_kept_each_time_that_another_half_epoch_is_done() -> None:
    text, kept = torch.zeros(1), Checkpoints(0.5)

    def learner() -> Prompts:
        return Prompts(text, text)

    for step in range(6):  # three steps an epoch
        text += 1
        kept(step / 3, learner)
    assert [epochs for epochs, _ in kept.kept] == pytest.approx([0, 2 / 3, 1, 5 / 3])
    assert [int(prompts.text) for _, prompts in kept.kept] == [1, 3, 4, 6]


def test_latents_that_change_come_first_then_the_strongest_of_the_others() -> None:
    before = torch.tensor([[9.0, 0.0, 5.0, 1.0, 0.0], [9.0, 0.0, 5.0, 1.0, 0.0]])
    after = torch.tensor([[9.0, 0.0, 1.0, 1.0, 3.0], [9.0, 0.0, 5.0, 1.0, 0.0]])
    assert choose(before, after, 2).tolist() == [2, 4, 0, 3]  # 1 is never active
    assert choose(before, after, 1).tolist() == [2, 0]
    assert choose(before, before, 2).tolist() == [0, 2]  # nothing changes


def test_values_are_averaged_over_the_pictures_of_a_class() -> None:
    split = SimpleNamespace(labels=torch.tensor([0, 2, 2]), class_names=("a", "b", "c"))
    values = torch.tensor([[1.0], [2.0], [4.0]])
    assert by_class(values, split).tolist() == [[1.0], [0.0], [3.0]]


def test_an_effect_is_what_is_lost_when_the_latent_is_removed_from_all_tokens() -> None:
    study = Study("smoke", sae="", n_task=20)
    task = study.tasks["Land cover from above"]
    split, d = task.base.first_of_each_class(1), study.clip.d_vit
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(3, d, generator=generator)
    sae = SimpleNamespace(
        W_dec=W,
        encode=lambda z: (z @ W.T).relu(),
        cuts=lambda tau: tau / W.norm(dim=1),
        images_at_once=lambda n, least: least,
    )
    counts, effects = in_pictures(sae, split, torch.tensor([2, 0]), 0.2)
    z = split.tokens[:].float()
    f = (z @ W.T).relu()
    above = (f * W.norm(dim=1) > 0.2).sum(1)
    assert torch.equal(counts, above[:, [2, 0]])
    with torch.no_grad():
        usual = split.clip.classify(z, split.head)
        lost = usual - split.clip.classify(z - f[..., 2, None] * W[2], split.head)
    assert torch.allclose(effects[:, 0], lost - lost.mean(1, keepdim=True), atol=1e-4)
    assert effects.abs().max() > 0.01


def test_bars_and_edges_have_one_scale_and_the_first_numbers_are_of_all_classes() -> None:
    data = film_data(a_film())
    largest = [max(x for row in f["levels"] for x in row) for f in data["frames"]]
    assert [round(x * data["bar"]) for x in largest] == [51, 51, 51, 102]
    assert data["frames"][0]["levels"] == [[2, 2, 2], [1, 2, 3], [3, 2, 1]]
    assert data["frames"][3]["effects"][0][0][0] * data["edge"] == pytest.approx(7)


def test_a_frame_says_in_words_what_it_shows() -> None:
    film = a_film()
    said = [words(film, x) for x in film.frames]
    assert said[0].startswith("CLIP itself, without prompts: 75% right.")
    assert said[1].startswith("CLIP with untrained prompts: 75% right.")
    assert said[2].startswith("After 0.5 of 1 epochs: 75% right.")
    assert "from latent 4 (<b>cat) to “cat” (+0.25 logits)" in said[0]
    assert said[0].endswith("“cat” for “dog” (50%).")
    sure = replace(film.frames[0], answers=torch.eye(2))
    assert words(film, sure).endswith("There is no mistake.")
    assert "changes by 2.0 tokens on average, 0.0 with untrained prompts" in film.summary()


def test_names_are_text_and_cannot_end_the_data() -> None:
    html = a_film("</script><img src=x>")._repr_html_()
    assert "<img" not in html
    assert html.count("</script>") == 2
    held = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert held
    assert "</script><img" in json.loads(held[1])["frames"][0]["words"]


def test_a_film_begins_with_clip_itself() -> None:
    study = Study("smoke", sae="", n_task=20)
    part, kept = study.tasks["Land cover from above"].base, Checkpoints(1.0)
    study.sae = SimpleNamespace(
        W_dec=torch.eye(study.clip.d_vit),
        encode=lambda z: z.relu(),
        cuts=lambda tau: tau * torch.ones(study.clip.d_vit),
        images_at_once=lambda n, least: least,
    )
    depth, d = 2, study.clip.d_vit
    noise = 0.5 * torch.randn(depth, 2, d, generator=torch.Generator().manual_seed(1))
    kept.kept.append((0.0, Prompts(torch.empty(0, 2, 0), noise)))
    names = [f"name {i}" for i in range(d)]
    film = film_training(study.clip, study.sae, part, kept.kept, names, StatisticsConfig())
    assert [x.epochs for x in film.frames] == [None, 0.0]
    assert film.frames[0].accuracy == pytest.approx(float(part.correct().mean()))
    assert film.names[0] == f"name {film.latents[0]}"
    assert not torch.equal(film.frames[0].effects, film.frames[1].effects)
    assert torch.allclose(film.frames[0].answers.sum(1), torch.ones(len(part.class_names)))


def test_the_slider_the_classes_and_play_move_the_first_frame(page) -> None:
    page.set_content(a_film()._repr_html_())
    words, slide = page.locator("output").first, page.get_by_role("slider")
    assert words.inner_text().startswith("CLIP itself")
    assert not page.locator(".film-last").is_visible()
    bar, edge = page.locator("g rect").first, page.locator("path.raises").first
    width = "(e) => parseFloat(e.style.width)"
    thick = "(e) => parseFloat(e.style.strokeWidth)"
    first, data = (bar.evaluate(width), edge.evaluate(thick)), film_data(a_film())
    assert first == pytest.approx((2 * data["bar"], 0.25 * data["edge"]), abs=0.01)
    slide.focus()
    page.keyboard.press("End")
    assert words.inner_text().startswith("After 1 of 1 epochs")
    assert slide.get_attribute("aria-valuetext") == "After 1 of 1 epochs"
    assert (bar.evaluate(width), edge.evaluate(thick)) == pytest.approx([2 * x for x in first])
    page.get_by_role("combobox").select_option("dog")
    assert bar.evaluate(width) == pytest.approx(3 * first[0], abs=0.2)
    assert "On pictures of “dog”, the strongest edge is from latent 4" in words.inner_text()
    page.get_by_role("button", name="Play").click()  # from the beginning
    assert words.inner_text().startswith("CLIP itself")
    page.wait_for_function("document.querySelector('.film input').value === '3'")
    page.get_by_role("button", name="Play").wait_for()  # it stops at the end


def test_paper_and_pages_without_scripts_show_the_first_and_the_last_frame(page, browser) -> None:
    page.set_content(a_film()._repr_html_())
    page.get_by_role("slider").fill("2")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown = page.locator("output")
    assert shown.nth(0).inner_text().startswith("CLIP itself")
    assert shown.nth(1).inner_text().startswith("After 1 of 1 epochs")
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert shown.nth(0).inner_text().startswith("After 0.5 of 1 epochs")
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.set_content(a_film()._repr_html_())
    assert plain.locator(".film-frame").nth(1).is_visible()
    assert not plain.locator(".film-controls").is_visible()
    context.close()
