"""The parameters of a notebook: what it knows, and what papermill injects into it."""

import pytest

from build import from_here
from execution import typed
from patchsae_lib.parameters import absolute, assignments, check_names, injected

DEFAULTS = "profile = 'world'\nimages: str = ''"


def test_only_top_level_assignments_are_parameters():
    code = f"{DEFAULTS}\nfor k in range(3):\n    inner = k\nprint(profile)"
    assert list(assignments(code)) == ["profile", "images"]


def test_an_unknown_parameter_is_named_beside_the_known_ones():
    check_names(["images"], ["profile", "images"])
    with pytest.raises(ValueError, match="unknown parameter 'imges'; known are images, profile"):
        check_names(["imges"], ["profile", "images"])


@pytest.mark.parametrize("cells", [[], ["", DEFAULTS], ["", DEFAULTS, "n = 2"]])
def test_a_notebook_run_by_hand_has_no_injected_parameters(cells):
    assert injected(cells) == []


def test_injected_parameters_must_be_those_of_the_notebook():
    assert injected(["", DEFAULTS, "# Parameters\nimages = 'folder:x'\n"]) == ["images"]
    with pytest.raises(ValueError, match="unknown parameter 'n'"):
        injected(["", DEFAULTS, "# Parameters\nn = 2\n"])


@pytest.mark.parametrize(("text", "default"), [("two", 2), ("maybe", True), ("1e-3x", 0.1)])
def test_a_value_of_another_type_is_an_error(text, default):
    with pytest.raises(ValueError, match=f"parameter n: '{text}' is not of type"):
        typed(text, default, "n")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("folder:photos", "folder:/here/photos"),
        ("folder:../photos", "folder:/photos"),
        ("folder:/my/photos", "folder:/my/photos"),
        ("folder:~/photos", "folder:/home/me/photos"),
        ("wds:a/{split}-{00..09}.tar", "wds:/here/a/{split}-{00..09}.tar"),
        ("mine.toml", "/here/mine.toml"),
        ("~/mine.TOML", "/home/me/mine.TOML"),
        ("sae.safetensors", "/here/sae.safetensors"),
        *((text, text) for text in ("world", "world:land", "hf:me/cats", "", "folder:", "3", "5")),
        *((text, text) for text in ("hf://me/saes/sae.safetensors", "ViT-B-16", "laion2b")),
    ],
)
def test_what_names_a_path_becomes_absolute_and_nothing_else(text, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute(text, "/here") == path
    assert absolute(path, "/elsewhere") == path


def test_parameters_are_seen_from_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("my_sae", "prompts.pt"):
        (tmp_path / file).touch()
    given = {"images": "folder:photos", "sae": "my_sae", "given": "prompts.pt", "cls": "owl"}
    profile, named = from_here("mine.toml", given)
    assert profile == f"{tmp_path}/mine.toml"
    paths = {"images": f"folder:{tmp_path}/photos", "sae": f"{tmp_path}/my_sae"}
    assert named == paths | {"given": f"{tmp_path}/prompts.pt", "cls": "owl"}
    for sae in ("shipped", "live", "", "hf://me/saes"):
        assert from_here("world", {"sae": sae}) == ("world", {"sae": sae})
    assert from_here("world", {"profile": "smoke", "n": "2"}) == ("smoke", {"n": "2"})
