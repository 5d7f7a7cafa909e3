"""Pictures from folders and from torchvision's data sets on disk."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from patchsae_lib import images
from patchsae_lib.images import Files, Pictures, _class_names, open_pictures, read_image
from patchsae_lib.world import World

RED, GREEN = (255, 0, 0), (0, 255, 0)


def write(path: Path, colour: tuple[int, int, int] = RED, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)
    return path


def tone(i: int) -> tuple[int, int, int]:
    """A colour by which picture `i` is known again."""
    return 10 * i, 20, 30


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures of a dog's colour and eight of a sea lion's."""
    folder = tmp_path / "photos"
    for i in reversed(range(20)):  # the file system's order is not that of the names
        write(folder / ("dog" if i < 12 else "sea_lion") / f"{i:02}.png", tone(i))
    return folder


def tones(pictures: Pictures, n: int) -> list[int]:
    """Which pictures the first `n` are, told by their colours."""
    return (pictures.batch(range(n))[:, 0, 0, 0] // 10).tolist()


@pytest.fixture
def torchvision_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    monkeypatch.setenv("TORCHVISION_DATA", str(root))
    return root


# --- folders -------------------------------------------------------------------------------------


def test_a_folder_is_divided_into_train_and_test(photos: Path) -> None:
    train, test = (open_pictures(f"folder:{photos}", split, size=4) for split in ("train", "test"))
    assert (len(train), len(test)) == (16, 4)
    assert sorted(tones(train, 16) + tones(test, 4)) == list(range(20))


def test_classes_are_the_sub_folders_in_the_order_of_their_names(photos: Path) -> None:
    train = open_pictures(f"folder:{photos}", size=4)
    assert train.class_names == ("dog", "sea lion")
    assert [train.label(i) for i in range(16)] == [int(t >= 12) for t in tones(train, 16)]


def test_the_division_depends_on_nothing_but_names(photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    for path in sorted(photos.rglob("*.png")):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.parent.name)
    spec, again = f"folder:{photos}", f"folder:{copy}"
    assert tones(open_pictures(spec, size=4), 16) == tones(open_pictures(again, size=4), 16)
    # Frozen: what is measured on a test split must stay unseen in training for good.
    assert tones(open_pictures(spec, "test", size=4), 4) == [15, 3, 12, 7]


def test_n_takes_the_first_and_0_takes_all(photos: Path) -> None:
    every = open_pictures(f"folder:{photos}", n=0, size=4)
    some = open_pictures(f"folder:{photos}", n=5, size=4)
    assert (len(every), len(some)) == (16, 5)
    assert tones(some, 5) == tones(every, 5)
    assert len(open_pictures(f"folder:{photos}", n=99)) == 16
    with pytest.raises(ValueError, match=r"-1 pictures of folder:.*0 for all"):
        open_pictures(f"folder:{photos}", n=-1)


def test_a_batch_keeps_the_order_asked_for(photos: Path) -> None:
    train = open_pictures(f"folder:{photos}", size=4)
    batch = train.batch([3, 0])
    assert (batch.shape, batch.dtype) == ((2, 3, 4, 4), torch.uint8)
    assert torch.equal(batch[1], train.batch([0])[0])


@pytest.mark.parametrize("shape", [(40, 20), (20, 40)])
def test_a_square_is_cut_from_the_middle(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape, RED)
    left, top = (shape[0] - 20) // 2, (shape[1] - 20) // 2
    image.paste(GREEN, (left, top, left + 20, top + 20))
    for i in range(2):
        (tmp_path / "a").mkdir(exist_ok=True)
        image.save(tmp_path / "a" / f"{i}.png")
    square = open_pictures(f"folder:{tmp_path}", size=10).batch([0])[0]
    middle = square[:, 2:-2, 2:-2]  # what is nearer to the edge is smoothed with what was beyond
    assert torch.equal(middle, torch.tensor(GREEN)[:, None, None].expand_as(middle))
    assert square[0].max() < 64


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    assert read_image(path).mode == "RGB"
    assert np.asarray(read_image(path)).min() > 250


def test_a_picture_taken_with_the_camera_turned_is_upright(tmp_path: Path) -> None:
    upright = Image.new("RGB", (16, 8), RED)
    upright.paste(GREEN, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), np.asarray(upright))


@pytest.mark.parametrize("broken", [b"", b"no picture", "cut"])
def test_a_broken_file_is_named(tmp_path: Path, broken: bytes | str) -> None:
    path = write(tmp_path / "cat" / "bad.png", side=64)
    write(tmp_path / "cat" / "good.png")
    path.write_bytes(path.read_bytes()[:-40] if isinstance(broken, str) else broken)
    train, test = (open_pictures(f"folder:{tmp_path}", split) for split in ("train", "test"))
    with pytest.raises(OSError, match=r"bad\.png cannot be read as a picture") as raised:
        train.batch([0]), test.batch([0])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("limit", [63, 40, 31])  # Pillow itself warns from one and refuses at two
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path = write(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(OSError, match=r"huge\.png cannot be read as a picture.*pixels"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    assert read_image(path).size == (8, 8)


@pytest.mark.parametrize("content", [None, "nothing", "no class", "an empty class", "a file"])
def test_a_folder_without_pictures_is_told_what_is_wanted(
    tmp_path: Path, content: str | None
) -> None:
    folder = tmp_path / "photos"
    if content == "a file":
        folder.write_text("")
    elif content is not None:
        folder.mkdir()
    if content == "no class":
        write(folder / "x.png")
    if content == "an empty class":
        (folder / "dog").mkdir()
    with pytest.raises(FileNotFoundError, match="wants one sub-folder of pictures a class") as at:
        open_pictures(f"folder:{folder}")
    assert str(folder) in str(at.value)
    assert "\n" not in str(at.value)


def test_one_picture_cannot_be_divided(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "x.png")
    assert len(open_pictures(f"folder:{tmp_path}", "test")) == 1
    with pytest.raises(ValueError, match="too few pictures to hold some out: 1"):
        open_pictures(f"folder:{tmp_path}", "train")


# --- what can be asked for -----------------------------------------------------------------------


def test_the_world_is_the_world() -> None:
    world = open_pictures("world:land", "test", n=5)
    assert isinstance(world, World)
    assert (world.task.name, world.split, len(world)) == ("land", "test", 5)
    assert len(open_pictures("world")) == 6_000


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:cifar10", "'hf:cifar10' are not supported yet: give world"),
        ("wds:shards.tar", "not supported yet: give world"),
        ("/my/photos", "'/my/photos' are unknown: give world, world:TASK, folder:PATH or torch"),
        ("", "'' are unknown: give world"),
        ("world:cats", "no task 'cats' in the world; there are world"),
        ("torchvision:cats", "torchvision has no data set 'cats'"),
        ("torchvision:ImageNett", "torchvision has no data set 'ImageNett'"),
    ],
)
def test_an_unknown_spec_is_told_what_is_known(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        open_pictures(spec)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", ["folder:.", "torchvision:CIFAR10"])
def test_an_unknown_split_is_told_which_there_are(spec: str) -> None:
    with pytest.raises(ValueError, match=r"no split 'val' of .* give train or test"):
        open_pictures(spec, "val")


# --- torchvision ---------------------------------------------------------------------------------


def idx(path: Path, array: np.ndarray) -> None:
    """Write bytes in the format of MNIST."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_a_data_set_divided_by_train(torchvision_data: Path) -> None:
    for stem, n in (("train", 6), ("t10k", 3)):
        raw = torchvision_data / "MNIST" / "raw"
        shades = np.arange(n)[:, None, None] * np.full((28, 28), 10)
        idx(raw / f"{stem}-images-idx3-ubyte", shades)
        idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(n))
    train = open_pictures("torchvision:MNIST", "train", size=4)
    test = open_pictures("torchvision:MNIST", "test", size=4)
    assert (len(train), len(test)) == (6, 3)
    assert sorted(tones(train, 6)) == list(range(6))
    assert [train.label(i) for i in range(6)] == tones(train, 6)
    assert train.class_names[3] == "3 - three"


def test_a_data_set_divided_by_split_with_names_of_its_own(torchvision_data: Path) -> None:
    pets = torchvision_data / "oxford-iiit-pet"
    (pets / "annotations").mkdir(parents=True)
    for split, numbers in (("trainval", (1, 2, 3)), ("test", (4,))):
        lines = []
        for label, breed in enumerate(("Abyssinian", "american_bulldog"), start=1):
            for i in numbers:
                write(pets / "images" / f"{breed}_{i}.jpg")
                lines.append(f"{breed}_{i} {label} 1 1\n")
        (pets / "annotations" / f"{split}.txt").write_text("".join(lines))
    train, test = (
        open_pictures("torchvision:OxfordIIITPet", split, size=4) for split in ("train", "test")
    )
    assert (len(train), len(test)) == (6, 2)
    assert train.class_names == ("Abyssinian", "American Bulldog")
    assert sorted(test.label(i) for i in range(2)) == [0, 1]


def test_a_data_set_with_train_and_test_splits(torchvision_data: Path) -> None:
    food = torchvision_data / "food-101"
    (food / "meta").mkdir(parents=True)
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        meta = {c: [f"{c}/{i}" for i in numbers] for c in ("apple_pie", "waffles")}
        (food / "meta" / f"{split}.json").write_text(json.dumps(meta))
        for path in (p for paths in meta.values() for p in paths):
            write(food / "images" / f"{path}.jpg")
    test = open_pictures("torchvision:Food101", "test", size=4)
    assert (len(test), test.class_names) == (2, ("apple pie", "waffles"))
    assert len(open_pictures("torchvision:Food101", "train")) == 4


def test_a_data_set_without_splits_is_divided_like_a_folder(torchvision_data: Path) -> None:
    for i in range(10):
        write(torchvision_data / "eurosat" / "2750" / "Forest" / f"{i}.jpg")
    sizes = [len(open_pictures("torchvision:EuroSAT", split)) for split in ("train", "test")]
    assert sizes == [8, 2]


@pytest.fixture
def imagenet(torchvision_data: Path) -> Path:
    """Two of ImageNet's classes, as its own preparation leaves them."""
    wnids = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish", "Carassius auratus")}
    torch.save((wnids, ["n01440764"]), torchvision_data / "meta.bin")
    for i, wnid in enumerate(wnids):
        write(torchvision_data / "train" / wnid / "a.JPEG", tone(i))
        write(torchvision_data / "val" / wnid / "b.JPEG", tone(i))
    return torchvision_data


def test_imagenet_is_tested_on_its_validation_split(imagenet: Path) -> None:
    train, test = (open_pictures("torchvision:ImageNet", s, size=4) for s in ("train", "test"))
    assert (len(train), len(test)) == (2, 2)
    assert test.class_names == ("tench", "goldfish")
    shutil.rmtree(imagenet / "val")
    with pytest.raises(FileNotFoundError, match=r"no ImageNet in .*TORCHVISION_DATA.*_val\.tar"):
        open_pictures("torchvision:ImageNet", "test")


def test_all_of_imagenet_has_the_names_that_clip_is_tested_with() -> None:
    data = datasets.ImageNet.__new__(datasets.ImageNet)
    data.classes = [("crane",)] * 1_000
    names = _class_names(data, [])
    assert (names[134], names[517]) == ("crane bird", "construction crane")


def test_a_broken_file_of_a_data_set_is_named(imagenet: Path) -> None:
    (imagenet / "val" / "n01440764" / "b.JPEG").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"b\.JPEG cannot be read as a picture"):
        open_pictures("torchvision:ImageNet", "test").batch([0, 1])


@pytest.mark.parametrize("name", ["CIFAR10", "Flowers102", "ImageNet", "SEMEION", "CocoDetection"])
def test_a_data_set_that_is_not_there_is_not_downloaded(
    torchvision_data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(FileNotFoundError, match=f"no {name} in {torchvision_data}") as raised:
        open_pictures(f"torchvision:{name}")
    assert "TORCHVISION_DATA" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_data_sets_are_looked_for_in_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHVISION_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        write(tmp_path / "pictures" / "eurosat" / "2750" / "Forest" / f"{i}.jpg")
    assert len(open_pictures("torchvision:EuroSAT")) == 4


def test_a_data_set_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="FakeData has no class labels"):
        Files(datasets.FakeData(3), "", 0, 4)


def test_classes_without_names_are_called_by_their_numbers() -> None:
    data = datasets.FakeData(3, (3, 8, 8))
    data.targets = [0, 2, 1]
    assert Files(data, "", 0, 4).class_names == ("0", "1", "2")


def test_pictures_read_once_are_the_same_and_read_once() -> None:
    world = World("land", "test", 8)
    asked = []

    class Counted:
        class_names = world.class_names
        label = staticmethod(world.label)
        __len__ = world.__len__

        def batch(self, indices):
            asked.extend(indices)
            return world.batch(indices)

    once = images.ReadOnce(Counted())
    assert torch.equal(once.batch([3, 1, 3]), world.batch([3, 1, 3]))
    assert torch.equal(once.batch([1, 2]), world.batch([1, 2]))
    assert asked == [3, 1, 2]
    assert (len(once), once.label(3), once.class_names) == (8, 3, world.class_names)
    assert images.template_of(images.ReadOnce(world)) == "a photo of a {}"
    assert images.template_of(Counted()) == "a photo of a {}."
