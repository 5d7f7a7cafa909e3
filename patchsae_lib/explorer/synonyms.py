"""Words by which a reader looks for concepts of the world: its own groups, and a short list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from patchsae_lib.world.objects import GROUPS
from patchsae_lib.world.vocabulary import WORDS

#: a reader's word → names, or kinds in the plural, of concepts
WRITTEN: dict[str, tuple[str, ...]] = {
    "animal": (*GROUPS["mammal"], *GROUPS["bird"], *GROUPS["sea"]),
    "arm": ("claw", "wing"),
    "bike": ("bicycle",),
    "bunny": ("rabbit",),
    "chick": ("rooster",),
    "crimson": ("red",),
    "dark": ("black", "night"),
    "drawing": ("sketch", "painting"),
    "face": ("eye", "nose", "mouth", "beak", "ear", "head"),
    "feather": ("wing", "tail", "comb"),
    "foot": ("leg", "claw"),
    "gold": ("yellow",),
    "grass": ("meadow",),
    "grey": ("black", "white"),
    "home": ("house", "tent", "room"),
    "ice": ("snow",),
    "kitten": ("cat",),
    "letter": ("sign", *WORDS),
    "paw": ("leg", "claw"),
    "photograph": ("photo",),
    "polka": ("dotted",),
    "puppy": ("dog",),
    "sand": ("beach", "desert"),
    "scarlet": ("red",),
    "ship": ("boat",),
    "street": ("road", "city"),
    "stripes": ("striped",),
    "text": ("sign", *WORDS),
    "tyre": ("wheel",),
    "violet": ("purple",),
    "water": ("sea", "beach"),
    "winter": ("snow",),
    "wood": ("forest", "tree", "trunk", "branch"),
    "word": ("sign", *WORDS),
    "writing": ("sign", *WORDS),
}


def synonyms(concepts: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    """Return, for words of a reader, the names among `concepts` (kind, name) that they stand for:
    the classes of a group, and those of `WRITTEN`.

    >>> synonyms([("class", "owl"), ("class", "duck"), ("colour", "red")])
    {'bird': ['duck', 'owl'], 'animal': ['duck', 'owl'], 'crimson': ['red'], 'scarlet': ['red']}
    """
    names = {name for _, name in concepts}
    table = {word: [x for x in meant if x in names] for word, meant in (GROUPS | WRITTEN).items()}
    return {word: meant for word, meant in table.items() if meant}
