"""The words of the embedded world: names of concepts, and the colours they are drawn in."""

from __future__ import annotations

STYLES = ("photo", "sketch", "painting", "silhouette")
#: a style absent from all pictures and captions of pretraining: the strongest shift of style
HELD_OUT_STYLE = "blueprint"

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 52, 50),
    "orange": (238, 135, 42),
    "yellow": (246, 206, 62),
    "green": (66, 158, 82),
    "blue": (52, 104, 208),
    "purple": (130, 74, 182),
    "pink": (242, 140, 178),
    "brown": (134, 88, 54),
    "white": (240, 240, 234),
    "black": (46, 46, 54),
}

#: patterns on objects; `plain` is the absence of one
TEXTURES = ("plain", "striped", "dotted", "checkered", "zigzag")

#: background → its phrase in captions
BACKGROUNDS: dict[str, str] = {
    "meadow": "in a meadow",
    "forest": "in a forest",
    "snow": "in the snow",
    "desert": "in a desert",
    "beach": "on a beach",
    "sea": "in the sea",
    "sky": "in the sky",
    "night": "at night",
    "city": "in a city",
    "road": "on a road",
    "room": "in a room",
    "wall": "by a wall",
}

#: parts of things; most occur in several classes
PARTS = (
    "back", "beak", "belly", "blade", "blanket", "body", "branch", "cap", "centre", "claw",
    "comb", "door", "ear", "eye", "fin", "flag", "frame", "fruit", "handle", "head", "horn",
    "lamp", "leaf", "leg", "mouth", "neck", "nose", "petal", "pillow", "pole", "pot", "roof",
    "sail", "seat", "shade", "shell", "spot", "spout", "stem", "tail", "top", "trunk", "tusk",
    "wall", "wheel", "window", "wing",
)  # fmt: skip

WORDS = ("stop", "cafe", "book", "zoo", "exit", "key", "taxi", "milk")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: colours of parts that do not take the colour of their object
ROLES: dict[str, tuple[int, int, int]] = {
    "dark": (44, 42, 48),
    "light": (246, 244, 236),
    "wood": (122, 84, 52),
    "metal": (148, 154, 164),
    "red": (206, 58, 52),
    "yellow": (244, 200, 70),
    "orange": (234, 138, 48),
    "leaf": (82, 148, 66),
    "glass": (172, 212, 234),
    "skin": (240, 190, 170),
}

IRREGULAR = {"fish": "fish", "cherry": "cherries", "bus": "buses", "cactus": "cacti"}


def plural(noun: str) -> str:
    """Return the plural of a class name.

    >>> plural("bus"), plural("cat")
    ('buses', 'cats')
    """
    return IRREGULAR.get(noun, noun + "s")
