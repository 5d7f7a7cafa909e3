"""Pictures: where they come from, and how a file is read. `open_pictures` is the way in."""

from patchsae_lib.pictures.decoding import read_image, square
from patchsae_lib.pictures.listing import spoken
from patchsae_lib.pictures.shots import base_classes, few_shot
from patchsae_lib.pictures.sources import (
    TEMPLATE,
    Pictures,
    ReadOnce,
    Subset,
    captions_of,
    labels_of,
    open_pictures,
    template_of,
    world_of,
)

__all__ = [
    "TEMPLATE", "Pictures", "ReadOnce", "Subset", "base_classes", "captions_of", "few_shot",
    "labels_of", "open_pictures", "read_image", "spoken", "square", "template_of", "world_of",
]  # fmt: skip
