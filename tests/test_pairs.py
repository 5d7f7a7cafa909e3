import pytest

from patchsae_lib.world import CLASSES
from patchsae_lib.world.pairs import Scenes, pair, pairs, pairs_of_each_kind, same_traits
from patchsae_lib.world.scene import Scene, Thing
from patchsae_lib.world.vocabulary import STYLES


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
    of_kinds = pairs_of_each_kind(3)
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
