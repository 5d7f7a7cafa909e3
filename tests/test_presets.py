"""The latents to begin with: chosen by rule, and drawn from what a bundle holds."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_explorer import Plain, latents_of

from patchsae_lib.explorer import describe, presets, write_bundle
from patchsae_lib.explorer.bundle import read_index

KINDS = ["colour", "colour", "class part", "group", "sign", "", "", ""]
TABLE = pd.DataFrame(
    {
        "kind": KINDS,
        "name": ["red", "blue", "stem", "bird", "sign", "no name", "no name", "no name"],
        "found": [1, 1, 1, 1, 1, 0, 0, 0],
        "iou": [0.5, 0.7, 0.3, 0.1, 0.4, 0.2, 0.1, np.nan],
        "entropy": [0, 0, 0, 0, 0, 1.5, 1.0, 0.0],
        "n_images": [9, 9, 9, 9, 9, 9, 9, 9],
        "top_class": ["owl"] * 8,
    }
)


def test_the_best_of_each_kind_and_one_failure_are_chosen() -> None:
    # blue is better than red; the part is a part's, so that the class falls to the group; there is
    # no background; of the two that could have a name, the one with the lower entropy
    assert presets.choices(TABLE) == [1, 2, 3, 4, 6]
    more = TABLE.assign(entropy=1.0, n_images=[*[9] * 6, 3, 99])
    assert presets.choices(more)[-1] == 5
    assert presets.choices(TABLE.assign(found=0, iou=np.nan)) == []
    assert presets.choices(TABLE[["kind"]]) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of eight latents: each is active in a corner of picture 100, and not in 30."""
    images = torch.tensor([[100, 30]] * 8)
    masks = torch.zeros(8, 2, 2, 2)
    masks[:, 0, 0, 0] = 4.0
    shown = latents_of(images, masks, levels=torch.zeros(3, 8))
    place = write_bundle(tmp_path / "b", Plain(200), shown, TABLE[["entropy", "n_images"]])
    describe(place, TABLE)
    return place


def test_a_bundle_is_read_as_it_was_written(folder: Path) -> None:
    index = read_index(folder)
    read = presets.properties(folder, index)
    pd.testing.assert_frame_equal(read[TABLE.columns], TABLE, check_dtype=False)
    numbers, masks = presets.examples(folder, index, 7, 4)
    assert len(numbers) == len(masks) == 2
    assert masks[0].tolist() == [[15, 0], [0, 0]]
    assert masks[1].max() == 0
    levels = [presets.picture(folder, index, n).getpixel((0, 0))[0] for n in numbers]
    assert levels == pytest.approx([100, 30], abs=2)


def test_a_preset_is_named_as_what_it_shows_and_bright_where_it_is_active(folder: Path) -> None:
    chosen = presets.presets(folder)
    assert [x.title for x in chosen[:4]] == ["Blue", "Stem", "Bird", "Sign"]
    assert chosen[0].note == "latent 1, IoU 0.70"
    assert chosen[4].title == "No name, but looks like “owl”"
    assert all(x.picture.startswith("data:image/webp;base64,") for x in chosen)
    image = Image.open(io.BytesIO(base64.b64decode(chosen[0].picture.partition(",")[2])))
    levels = [image.convert("RGB").getpixel(at)[0] for at in ((9, 9), (50, 9), (9, 50), (80, 9))]
    assert levels[0] == pytest.approx(100, abs=6)  # lit in one corner of the first picture
    assert max(levels[1:]) < 45
