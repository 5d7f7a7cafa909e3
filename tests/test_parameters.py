"""The parameters of a notebook: what it knows, and what papermill injects into it."""

import pytest

from execution import typed
from patchsae_lib.parameters import assignments, check_names, injected

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
