import pytest

from patchsae_lib.world import CLASSES
from patchsae_lib.world.pairs import Scenes, pair


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
