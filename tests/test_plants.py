"""The game of planted changes: what is said in it comes from the table of answers alone."""

from __future__ import annotations

import json
import math
import re

import pandas as pd

from patchsae_lib.explorer.plants import PlantGame, wanted
from patchsae_lib.world.planting import NOTHING

REQUIRED = {"strengths": (0.8, math.inf), "new": (-math.inf, 0.1), "alpha": (0.0, 0.2)}


def a_game(method: str = "split") -> PlantGame:
    columns = ["plant", "seed", "method", "grade", "strengths", "new", "alpha"]
    rows = [
        ("strengths × 0.1", 0, method, "wrong", 0.2, 0.8, math.nan),
        ("strengths × 0.1", 0, "scaling", "right", math.nan, math.nan, 0.104),
        ("noise", 0, method, "abstains", math.nan, math.nan, math.nan),
        ("noise", 0, "scaling", "right", math.nan, math.nan, math.nan),
    ]
    required = {("strengths × 0.1", 0): REQUIRED, ("noise", 0): NOTHING}
    return PlantGame(pd.DataFrame(rows, columns=columns), required)


def test_a_round_has_what_each_method_said_and_how_it_was_graded() -> None:
    first, second = a_game().rounds()
    assert (first["plant"], first["kind"], first["seed"]) == ("strengths × 0.1", "strengths", 0)
    assert first["of"][0]["says"] == [["strengths", "20%"], ["new", "80%"]]
    assert first["of"][1]["says"] == [["α", "0.10"]]
    assert [x["grade"] for x in first["of"]] == ["wrong", "right"]
    assert second["of"][0]["says"] == []


def test_what_is_right_is_said_in_words() -> None:
    assert wanted(REQUIRED) == "strengths at least 80%, new at most 10%, α 0.00 to 0.20"
    assert wanted(NOTHING) == "nothing: all shares and the change are 0"
    assert wanted({**NOTHING, "names": (0.99, 1.01)}) == "names 99% to 101%"
    assert wanted({"new or error": (0.8, math.inf)}) == "new or error at least 80%"


def test_the_summary_counts_methods_that_are_fooled() -> None:
    said = a_game().summary()
    assert said.startswith("1 of 2 plants fooled a method, and strengths × 0.1 fooled 1 of 2")
    assert said.endswith("never fooled: scaling.")
    answers = a_game().answers.replace("wrong", "right")
    assert PlantGame(answers, {}).summary().startswith("no plant fooled a method; never fooled")


def test_names_are_text_and_cannot_end_the_data() -> None:
    html = a_game("</script><img src=x>")._repr_html_()
    assert "<img" not in html
    assert html.count("</script>") == 2
    held = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert held
    assert json.loads(held[1])["kinds"] == ["strengths", "noise"]


def test_a_plant_can_be_chosen_and_shows_who_was_fooled(page) -> None:
    page.set_content(a_game()._repr_html_())
    truth = page.locator(".plants-truth")
    assert truth.inner_text().endswith("Fooled: split. Right: scaling.")
    assert page.locator(".plants-wrong").inner_text() == "✗ fooled"
    page.locator("select").select_option("noise, seed 0")
    assert "Planted: noise" in truth.inner_text()
    page.get_by_role("button", name="a random one").click()
    assert "Planted: strengths" in truth.inner_text()  # another one
    assert not page.locator(".plants-kinds").is_visible()


def test_a_guess_sees_no_grades_and_is_graded_by_the_truth(page) -> None:
    page.set_content(a_game()._repr_html_())
    page.get_by_label("guess what was planted").check()
    score, kinds = page.locator(".plants-score"), page.locator(".plants-kinds button")
    assert score.inner_text() == "Guessing blindly is right one time in 2."
    right = 0
    for turn in range(4):
        assert not page.locator("select").is_visible()
        assert page.locator(".plants-right, .plants-wrong, .plants-abstains").count() == 0
        truth = "strengths" if "80%" in page.locator(".plants-answers").inner_text() else "noise"
        guess = truth if turn % 2 else "noise"
        kinds.filter(has_text=guess).focus()
        page.keyboard.press("Enter")
        right += guess == truth
        words = page.locator(".plants-truth").inner_text()
        assert words.startswith("Right." if guess == truth else "Wrong.")
        assert f"Planted: {truth}" in words
        blind = (turn + 1) / 2
        wanted_score = f"{right} of {turn + 1} right; guessing blindly gives {blind:.1f}."
        assert score.inner_text() == wanted_score
        page.keyboard.press("Enter")  # the focus is on "next"
    page.get_by_label("choose a plant").check()
    assert page.locator("select").is_visible()


def test_without_scripts_the_scorecard_is_named(browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(a_game()._repr_html_())
    assert "the scorecard has the grades" in page.inner_text(".plants")
    assert not page.locator(".plants-game").is_visible()
    context.close()
