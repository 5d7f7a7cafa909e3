from dataclasses import replace

import numpy as np
import pytest
import torch

from patchsae_lib.world import CLASSES, Picture
from patchsae_lib.world.pairs import (
    CHANGED_CLASSES,
    CHANGES,
    Scenes,
    changed_patches,
    counterfactual,
    counterfactuals,
    pair,
    pairs,
    pairs_of_each_kind,
    same_traits,
)
from patchsae_lib.world.render import render
from patchsae_lib.world.scene import Scene, Thing
from patchsae_lib.world.vocabulary import BACKGROUNDS, STYLES


@pytest.mark.parametrize("same", [True, False])
def test_a_pair_differs_in_what_was_asked_for(same: bool) -> None:
    for number in range(70):
        a, b = pair("background", number, same_class=same)
        assert a.style == b.style == "photo"
        assert a.background != b.background
        assert (a.things[0].cls == b.things[0].cls) == same
        assert a.things[0].cls == CLASSES[number % len(CLASSES)]
        a, b = pair("style", number, same_class=same)
        assert a.style == "photo" != b.style
        assert (a.things[0].cls == b.things[0].cls) == same


def test_a_pair_is_always_the_same_and_of_the_class_asked_for() -> None:
    assert pair("style", 3, "cat") == pair("style", 3, "cat") != pair("style", 4, "cat")
    assert {s.things[0].cls for s in pair("background", 5, "bus")} == {"bus"}
    with pytest.raises(ValueError, match="no change 'light': give background or style"):
        pair("light", 0)


def test_scenes_are_pictures() -> None:
    scenes = [s for n in range(3) for s in pair("style", n)]
    world = Scenes(scenes)
    assert len(world) == 6
    assert [world.label(i) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert world.batch([0, 5]).shape == (2, 3, 112, 112)
    assert world.picture(3).mask("cls", CLASSES[1]).any()
    with pytest.raises(IndexError):
        world.picture(6)


def test_scenes_of_pairs_have_one_thing_and_no_word() -> None:
    for number in range(70):
        for change in ("background", "style"):
            for scene in pair(change, number):
                assert (len(scene.things), scene.word) == (1, "")


def test_every_pair_is_another_and_every_style_comes() -> None:
    assert pair("background", 3, "cat") != pair("background", 4, "cat")
    assert {pair("style", n, "cat")[1].style for n in range(3)} == set(STYLES[1:])
    a, b = pair("background", 82)  # drawn again twice: the first two have the same background
    assert a.background != b.background


def test_the_pictures_of_pairs_take_turns() -> None:
    scenes = pairs("style", [5, 2], "cat", same_class=False)
    wanted = [*pair("style", 5, "cat", False), *pair("style", 2, "cat", False)]
    assert [scenes.scene(i) for i in range(4)] == wanted


def test_pairs_of_each_kind_are_those_they_say() -> None:
    of_kinds = pairs_of_each_kind(range(4, 7))
    assert list(of_kinds) == [
        "one class, other background",
        "one class, other style",
        "two classes, other background",
        "two classes, other style",
    ]
    for name, scenes in of_kinds.items():
        assert len(scenes) == 6
        for i in range(0, 6, 2):
            a, b = scenes.scene(i), scenes.scene(i + 1)
            assert (a.things[0].cls == b.things[0].cls) == name.startswith("one")
            assert (a.style == b.style) == name.endswith("background")
            assert a.things[0].cls == CLASSES[4 + i // 2]


def given(style: str, background: str, *classes: str) -> Scene:
    return Scene(style, background, tuple(Thing(c, "red", "plain", 56, 56, 40) for c in classes))


def test_traits_are_compared_with_every_picture() -> None:
    one = Scenes([given("photo", "snow", "cat", "dog"), given("sketch", "sea", "dog")])
    other = Scenes(
        [
            given("photo", "sea", "cat"),
            given("sketch", "snow", "cat"),
            given("photo", "sea", "dog"),
        ]
    )
    same = {name: x.int().tolist() for name, x in same_traits(one, other).items()}
    assert same == {
        "class": [[1, 1, 0], [0, 0, 1]],
        "background": [[0, 1, 0], [1, 0, 1]],
        "style": [[1, 0, 1], [0, 1, 0]],
    }
    assert one.label(0) == CLASSES.index("cat")  # of its first thing


# --- exact counterfactuals -----------------------------------------------------------------------

NUMBERS = range(3 * len(CHANGED_CLASSES))


def drawn(change: str, number: int) -> tuple[Picture, Picture, np.ndarray]:
    """Both pictures, and the pixels that differ."""
    a, b = map(render, counterfactual(change, number))
    return a, b, (a.pixels != b.pixels).any(2)


def near(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Pixels at most so many from a mask, in rows and in columns."""
    steps = range(-pixels, pixels + 1)
    padded = np.pad(mask, pixels)
    moved = [np.roll(padded, (dy, dx), (0, 1)) for dy in steps for dx in steps]
    return np.logical_or.reduce(moved)[pixels:-pixels, pixels:-pixels]


def signs(*pictures: Picture) -> np.ndarray:
    shows = [np.array([bool(r.word) for r in p.regions])[p.ids] for p in pictures]
    return np.logical_or.reduce(shows)


def things(*pictures: Picture) -> np.ndarray:
    return np.logical_or.reduce([p.thing_mask(0) for p in pictures])


@pytest.mark.parametrize("change", CHANGES)
def test_a_counterfactual_changes_one_thing(change: str) -> None:
    for number in NUMBERS:
        first, second = counterfactual(change, number)
        assert first == counterfactual("colour", number)[0]
        a, b = first.things[0], second.things[0]
        differs = {
            "colour": a.colour != b.colour,
            "style": first.style != second.style,
            "background": first.background != second.background,
            "word": first.word != second.word,
            "class": a.cls != b.cls,
            "position": (a.x, a.y) != (b.x, b.y),
        }
        assert [name for name, is_other in differs.items() if is_other] == [change]
        undone = replace(b, colour=a.colour, cls=a.cls, x=a.x, y=a.y)
        same = {"style": first.style, "background": first.background, "word": first.word}
        assert replace(second, things=(undone,), **same) == first
        assert (first.style, len(first.things), bool(first.word)) == ("photo", 1, True)
        assert a.cls == CHANGED_CLASSES[number % len(CHANGED_CLASSES)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_counterfactual_can_be_seen(change: str) -> None:
    for number in NUMBERS:
        _, _, differs = drawn(change, number)
        assert differs.sum() >= 100


def test_a_change_of_colour_stays_on_the_object() -> None:
    for number in NUMBERS:
        a, b, differs = drawn("colour", number)
        assert np.array_equal(a.ids, b.ids)
        assert not (differs & ~near(things(a), 2)).any()  # pixels of an edge are mixed


def test_a_change_of_word_stays_on_the_sign() -> None:
    for number in NUMBERS:
        a, b, differs = drawn("word", number)
        assert np.array_equal(signs(a), signs(b))
        assert not (differs & ~signs(a)).any()


def test_a_change_of_background_leaves_objects_and_signs_where_they_are() -> None:
    for number in NUMBERS:
        a, b, differs = drawn("background", number)
        for kind in ("cls", "part", "colour", "texture", "word"):
            names = {getattr(r, kind) for r in (*a.regions, *b.regions)} - {""}
            for name in names:
                assert np.array_equal(a.mask(kind, name), b.mask(kind, name))
        within = ~near(~things(a), 2)  # away from its edge
        assert (differs & within).sum() <= 8  # it shows through slits of less than a pixel


@pytest.mark.parametrize("change", ["class", "position"])
def test_what_is_far_from_an_object_stays_as_it_is(change: str) -> None:
    for number in NUMBERS:
        a, b, differs = drawn(change, number)
        around = near(things(a, b) | signs(a, b), 8)  # a shadow, light; a sign may be in front
        assert not (differs & ~around).any()
        behind = ~things(a, b)
        shown = [np.array([r.background + r.word for r in p.regions])[p.ids] for p in (a, b)]
        assert np.array_equal(shown[0][behind], shown[1][behind])


def test_a_change_of_style_leaves_the_shapes_of_a_silhouette() -> None:
    pictures = {counterfactual("style", n)[1].style: drawn("style", n) for n in NUMBERS}
    assert set(pictures) == set(STYLES[1:])
    a, b, _ = pictures["silhouette"]
    assert np.array_equal(a.ids, b.ids)  # the other styles move outlines, as a hand does


def test_an_object_moves_by_a_patch_and_stays_inside() -> None:
    for number in NUMBERS:
        a, b = (scene.things[0] for scene in counterfactual("position", number))
        assert np.hypot(a.x - b.x, a.y - b.y) >= 8
        assert b.size <= min(b.x, 112 - b.x) + 1e-9


def test_layers_of_a_scene_are_drawn_alone() -> None:
    scene = counterfactual("word", 3)[0]
    without = replace(scene, word="")
    a, b = render(scene), render(without)
    assert not ((a.pixels != b.pixels).any(2) & ~near(signs(a), 8)).any()
    alone = render(replace(scene, things=()))
    assert not ((a.pixels != alone.pixels).any(2) & ~near(things(a) | signs(a), 8)).any()
    plain = replace(scene, layered=False), replace(without, layered=False)
    a, b = map(render, plain)
    assert (a.pixels != b.pixels).any(2).mean() > 0.9  # one generator: the noise is another


def test_wrong_counterfactuals_are_refused() -> None:
    with pytest.raises(ValueError, match="no change 'light': give colour, style, background"):
        counterfactual("light", 0)
    with pytest.raises(ValueError, match="no counterfactuals of class 'flower'"):
        counterfactual("word", 0, "flower")
    assert {s.things[0].cls for s in counterfactual("word", 5, "bus")} == {"bus"}


def test_counterfactuals_of_several_scenes() -> None:
    pictures = counterfactuals([5, 2])
    assert list(pictures) == ["unchanged", *CHANGES]
    for change in CHANGES:
        pairs_of = zip(pictures["unchanged"].scenes, pictures[change].scenes, strict=True)
        assert list(pairs_of) == [counterfactual(change, n) for n in (5, 2)]
    assert len({s.background for s in counterfactuals(range(60))["background"].scenes}) == len(
        BACKGROUNDS
    )


def test_patches_that_a_change_concerns() -> None:
    pictures = counterfactuals([0, 1])
    first, second = pictures["unchanged"], pictures["word"]
    is_changed = changed_patches(first, second, (14, 14))
    assert is_changed.shape == (2, 196)
    for n in (0, 1):
        differs = drawn("word", n)[2].reshape(14, 8, 14, 8).any((1, 3))
        assert torch.equal(is_changed[n], torch.from_numpy(differs).flatten())
    assert not changed_patches(first, first, (14, 14)).any()
