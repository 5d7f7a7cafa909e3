"""Pictures from folders, torchvision's data sets on disk, the hub's, and webdataset shards."""

import hashlib
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from patchsae_lib.pictures import (
    Pictures,
    ReadOnce,
    Subset,
    captions_of,
    labels_of,
    open_pictures,
    read_image,
    spoken,
    template_of,
    world_of,
)
from patchsae_lib.pictures.listing import readable, stamps
from patchsae_lib.pictures.naming import pictures_identity
from patchsae_lib.pictures.torchvision_sets import class_labels, class_names, torchvision
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


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 255, 0, 255), (0, 0, 4, 8))
    image.save(tmp_path / "x.png")
    pixels = np.asarray(read_image(tmp_path / "x.png"))
    assert pixels[0, 0].tolist() == [0, 255, 0]
    assert pixels[0, 7].tolist() == [255, 255, 255]
    Image.new("P", (8, 8)).save(tmp_path / "p.gif", transparency=0)
    assert np.asarray(read_image(tmp_path / "p.gif")).min() == 255


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    assert np.asarray(read_image(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


def zlib_crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def png(depth: int, kind: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row, with chunks of its own before the pixels."""
    header = struct.pack(">IIBBBBB", 4, 1, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    encoded = (struct.pack(">I", len(x)) + name + x + zlib_crc(name + x) for name, x in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)


GREYS = struct.pack(">4H", 0, 257, 32_896, 65_535)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(16, 0, GREYS, (b"tRNS", struct.pack(">H", 257))), [0, 255, 128, 255]),
        (b"P5\n4 1\n65535\n" + GREYS, [0, 1, 128, 255]),
        (b"P5\n4 1\n1023\n" + struct.pack(">4H", 0, 4, 512, 1_023), [0, 1, 128, 255]),
        (b"P2\n4 1\n65535\n0 257 32896 65535\n", [0, 1, 128, 255]),
    ],
    ids=["PNG with a transparent level", "PGM", "PGM of 10 bits", "PGM in words"],
)
def test_sixteen_bits_of_other_formats(content: bytes, expected: list[int]) -> None:
    assert np.asarray(read_image(io.BytesIO(content)))[0, :, 0].tolist() == expected


def test_a_picture_with_damaged_exif_is_an_error_with_its_name(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "owl" / f"{i}.png", tone(i))
    (tmp_path / "owl" / "cut.png").write_bytes(png(8, 0, b"abcd", (b"eXIf", b"II*\0")))
    with pytest.raises(OSError, match=r"cut\.png cannot be read as a picture: unpack requires"):
        read_image(tmp_path / "owl" / "cut.png")
    with pytest.warns(UserWarning, match=r"1 pictures left out: .*cut\.png"):
        parts = [open_pictures(f"folder:{tmp_path}", s, size=4) for s in ("train", "test")]
    assert sum(map(len, parts)) == 10


@pytest.mark.parametrize(
    "error",
    [
        struct.error("x"), TypeError("x"), RuntimeError("x"), KeyError("x"), IndexError("x"),
        EOFError("x"), zlib.error("x"), OverflowError("x"), MemoryError(), AttributeError("x"),
        ZeroDivisionError("x"), RecursionError("x"), AssertionError(), SyntaxError("x"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_decoder_raises_is_an_os_error_with_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    path = write(tmp_path / "damaged.png")
    with pytest.raises(OSError, match=r"damaged\.png cannot be read as a picture: \S") as raised:
        read_image(path)
    assert raised.value.__cause__ is error


def test_the_name_of_a_damaged_file_can_be_printed(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(path).write_text("no picture")
    with pytest.raises(OSError, match=r"caf\\udce9\.png cannot be read") as raised:
        read_image(path)
    str(raised.value).encode()


def spoil(folder: Path) -> dict[str, str]:
    """Put files into a folder that cannot be read as pictures: name → part of the reason."""
    Image.effect_noise((64, 64), 100).save(folder / "cut.jpg")
    large = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(large[: len(large) * 3 // 4])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    bomb = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    png = write(folder / "bomb.png").read_bytes()
    (folder / "bomb.png").write_bytes(png[:16] + bomb + zlib_crc(b"IHDR" + bomb) + png[33:])
    return {
        "cut.jpg": "image file is truncated", "empty.png": "cannot identify",
        "text.jpg": "cannot identify", "dead.png": "No such file", "bomb.png": "pixels",
    }  # fmt: skip


def test_what_cannot_be_read_is_left_out_with_count_and_reason(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    for i in range(10):
        write(folder / "größe ö" / f"schöne ähre {i}.png", tone(i))
    write(folder / "größe ö" / "one.png", tone(10), side=1)
    reasons = spoil(folder / "größe ö")
    with pytest.warns(UserWarning, match="pictures left out") as said:
        train, test = (open_pictures(f"folder:{folder}", s, size=4) for s in ("train", "test"))
    assert sorted(tones(train, len(train)) + tones(test, len(test))) == list(range(11))
    skipped = train.skipped + test.skipped
    assert len(skipped) == len(reasons)
    for name, reason in reasons.items():
        (line,) = [line for line in skipped if f"{name} cannot be read" in line]
        assert reason in line
        assert "\n" not in line
    counts = [int(str(w.message).split(": ")[1].split()[0]) for w in said]
    assert sum(counts) == len(reasons)


def test_n_counts_pictures_that_can_be_read(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "a" / f"{i}.png", tone(i))
    spoil(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(open_pictures(f"folder:{tmp_path}", n=5)) == 5


def test_without_the_check_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "a" / f"{i}.png")
    spoil(tmp_path / "a")
    every = open_pictures(f"folder:{tmp_path}", check=False)
    assert len(every) == 6  # of seven
    with pytest.raises(OSError, match="cannot be read as a picture"):
        every.batch(range(6))


def test_if_nothing_can_be_read_that_is_said(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"folder:.*no picture can be read, of 4: .*jpg cannot"):
        open_pictures(f"folder:{tmp_path}")


# --- folders of other kinds ------------------------------------------------------------------


def test_pictures_without_folders_have_no_classes(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / f"{i}.PNG", tone(i))
    (tmp_path / "notes.txt").write_text("not one of them")
    train, test = (open_pictures(f"folder:{tmp_path}", s, size=4) for s in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert sorted(tones(train, 8) + tones(test, 2)) == list(range(10))
    assert train.class_names == ()
    assert [train.label(i) for i in range(8)] == [-1] * 8
    assert captions_of(test) == ["a photo of a picture."] * 2


def test_hidden_folders_and_other_formats(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / "dog" / f"{i}.png", tone(i))
    write(tmp_path / "dog" / "4.gif", tone(4))
    for hidden in (".ipynb_checkpoints", "dog/.thumbnails"):
        (tmp_path / hidden).mkdir()
    write(tmp_path / "dog" / "._0.png")  # as macOS leaves them
    parts = [open_pictures(f"folder:{tmp_path}", s, size=4) for s in ("train", "test")]
    assert sum(map(len, parts)) == 5
    assert parts[0].class_names == ("dog",)


def test_the_classes_of_a_divided_folder_are_those_of_train(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "train/c", "test/a", "test/c"):
        for i in range(2):
            write(tmp_path / name / f"{i}.png", tone("abc".index(name[-1])))
    test = open_pictures(f"folder:{tmp_path}", "test", size=4)
    assert test.class_names == ("a", "b", "c")
    assert [test.label(i) for i in range(4)] == tones(test, 4)
    write(tmp_path / "test" / "d" / "0.png")
    with pytest.raises(FileNotFoundError, match="has classes that train has not: d"):
        open_pictures(f"folder:{tmp_path}", "test")


def lay_out(root: Path, *folders: str, n: int = 5, suffix: str = ".png") -> Path:
    """Write `n` pictures into each folder; "" is the root."""
    for folder in folders:
        for i in range(n):
            write(root / folder / f"{i}{suffix}", tone(i))
    return root


@pytest.mark.parametrize(
    ("folders", "classes", "sizes"),
    [
        ("Train/cat Train/dog Test/cat Test/dog", "cat dog", (10, 10)),
        ("TRAIN/cat TRAIN/dog Val/cat", "cat dog", (10, 5)),
        ("training/cat training/dog validation/cat validation/dog", "cat dog", (10, 10)),
        ("train/cat train/dog", "cat dog", (8, 2)),
        ("train/cat train/dog test/unlabelled val/cat", "cat dog", (10, 5)),
        ("train/cat train/dog test val/cat", "cat dog", (10, 5)),
        ("bus car train", "bus car train", (12, 3)),  # the vehicle
        ("train test", "", (5, 5)),
        ("train", "", (4, 1)),
        ("photos/cat photos/dog", "cat dog", (8, 2)),
        ("a/b/c/cat a/b/c/dog", "cat dog", (8, 2)),
        ("data/train/cat data/test/cat", "cat", (5, 5)),
        ("images", "", (4, 1)),
        ("cat", "cat", (4, 1)),
        ("cat cat/young", "cat", (8, 2)),
        ("cat dog __MACOSX/cat @eaDir $RECYCLE.BIN/x .git/cat", "cat dog", (8, 2)),
        ("cat dog cat/.ipynb_checkpoints dog/@eaDir", "cat dog", (8, 2)),
        ("photos/cat photos/dog __MACOSX/photos/cat", "cat dog", (8, 2)),
    ],
)
def test_layouts_of_folders(
    tmp_path: Path, folders: str, classes: str, sizes: tuple[int, int]
) -> None:
    lay_out(tmp_path, *folders.split())
    parts = [open_pictures(f"folder:{tmp_path}", s, size=4) for s in ("train", "test")]
    assert tuple(map(len, parts)) == sizes
    for part in parts:
        assert part.class_names == tuple(classes.split())
        for i in range(len(part)) if classes else []:
            parents = Path(part.source.item(part.order[i])).parts
            assert part.class_names[part.label(i)] in parents


@pytest.mark.parametrize(
    ("folders", "empty", "split", "message"),
    [
        ("test/cat test/dog", "", "train", "has test, but no folder train"),
        ("train/cat train/dog", "test", "test", "test has no pictures"),
        ("train/cat train/dog test", "", "test", "test has no folders of classes, as train has"),
        ("train/cat test/cat test/dog", "", "test", "has classes that train has not: dog"),
    ],
)
def test_a_split_that_is_not_there_is_refused_in_our_words(
    tmp_path: Path, folders: str, empty: str, split: str, message: str
) -> None:
    lay_out(tmp_path, *folders.split())
    (tmp_path / empty).mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError, match=message) as raised:
        open_pictures(f"folder:{tmp_path}", split)
    assert "class_to_index" not in str(raised.value)


@pytest.mark.parametrize(
    ("extra", "n"),
    [
        (["cat/IMG_1.HEIC", "cat/IMG_2.heic", "dog/x.CR2"], 3),
        (["cat/image0", "dog/image1"], 2),
        (["a.png", "b.JPG"], 2),  # beside the classes
        (["cat/notes.txt", "README.md", "labels.csv", "cat/Thumbs.db", ".DS_Store"], 0),
        (["cat/a.png.crdownload"], 1),
    ],
)
def test_what_is_no_picture_to_read_is_counted(tmp_path: Path, extra: list[str], n: int) -> None:
    lay_out(tmp_path, "cat", "dog")
    for name in extra:
        shutil.copy(tmp_path / "cat" / "0.png", tmp_path / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pictures = open_pictures(f"folder:{tmp_path}", size=4)
    assert (len(pictures), len(pictures.skipped)) == (8, n)
    assert pictures.class_names == ("cat", "dog")
    assert [f"{n} pictures left out" in str(x.message) for x in caught] == [True] * bool(n)
    for name in extra[:n]:
        assert any(name in line for line in pictures.skipped)


def test_what_else_is_left_out_is_said(tmp_path: Path) -> None:
    lay_out(tmp_path / "a", "cat", "dog")
    (tmp_path / "a" / "bird").mkdir()
    with pytest.warns(UserWarning, match=r"there are no pictures in .*bird"):
        assert open_pictures(f"folder:{tmp_path / 'a'}").class_names == ("cat", "dog")
    lay_out(tmp_path / "b", "jpgs")
    (tmp_path / "b" / "labels.csv").write_text("0.png,cat")
    with pytest.warns(UserWarning, match=r"labels\.csv is not read: the pictures have no classes"):
        assert open_pictures(f"folder:{tmp_path / 'b'}").class_names == ()


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    lay_out(tmp_path / "all", "cat", "dog")
    lay_out(tmp_path, "elsewhere")
    (tmp_path / "all" / "cat" / "loop").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "owl").symlink_to(tmp_path / "elsewhere")
    pictures = open_pictures(f"folder:{tmp_path / 'all'}", size=4)
    assert (len(pictures), pictures.class_names) == (12, ("cat", "dog", "owl"))


def test_a_folder_that_may_not_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, "cat", "dog")
    scan = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(FileNotFoundError, match=r"Permission denied: .*dog"):
        open_pictures(f"folder:{tmp_path}")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, "dog", os.fsdecode(b"caf\xe9"))
    with pytest.raises(
        ValueError, match=r"the name of the folder .*caf\\xe9 is not UTF-8: rename"
    ):
        open_pictures(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, ("tench", "construction crane")),
        ("n01440764 a fish\nn03126707 crane_lift\n\n", ("a fish", "crane lift")),
        ("n01440764 a fish\n", ("tench", "construction crane")),  # not all: not used
    ],
)
@pytest.mark.parametrize("divided", [False, True])
def test_synsets_become_the_names_that_clip_is_tested_with(
    tmp_path: Path, listed: str | None, expected: tuple[str, ...], divided: bool
) -> None:
    for part in ("train/", "val/") if divided else ("",):
        lay_out(tmp_path, f"{part}n01440764", f"{part}n03126707")
    if listed:
        (tmp_path / "classnames.txt").write_text(listed)
    assert open_pictures(f"folder:{tmp_path}").class_names == expected


def test_an_unknown_synset_is_told_how_to_be_named(tmp_path: Path) -> None:
    lay_out(tmp_path, "n01440764", "n99999999")
    message = r"1 classes are called like n99999999: name them in .*classnames\.txt, in lines like"
    with pytest.warns(UserWarning, match=message):
        assert open_pictures(f"folder:{tmp_path}").class_names == ("tench", "n99999999")


def test_equal_names_are_numbered_and_spoken_alike(tmp_path: Path) -> None:
    lay_out(tmp_path, "owl", "red owl", "red_owl", "red owl_")
    with pytest.warns(UserWarning, match=r"2 class names are those of other.*'red owl \(no. 2\)'"):
        pictures = open_pictures(f"folder:{tmp_path}", size=4)
    assert pictures.class_names == ("owl", "red owl", "red owl (no. 2)", "red owl (no. 3)")
    assert spoken(pictures.class_names) == ["owl"] + ["red owl"] * 3
    assert {*captions_of(pictures)} == {"a photo of a owl.", "a photo of a red owl."}
    assert len({*readable(open_clip.IMAGENET_CLASSNAMES)}) == 1_000


def test_an_eps_file_is_not_handed_to_ghostscript(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(OSError, match=r"x\.jpg cannot be read as a picture: cannot identify"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_what_has_no_known_white_is_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.zeros((4, 4), kind)).save(tmp_path / "x.tif")
    with pytest.raises(OSError, match="32 bits a pixel"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_may_be_divided_already(tmp_path: Path, name: str) -> None:
    for split, numbers in (("train", range(3)), (name, range(3, 5))):
        for i in numbers:
            write(tmp_path / split / "dog" / f"{i}.png", tone(i))
    train, test = (open_pictures(f"folder:{tmp_path}", s, size=4) for s in ("train", "test"))
    assert (sorted(tones(train, 3)), sorted(tones(test, 2))) == ([0, 1, 2], [3, 4])
    assert train.class_names == test.class_names == ("dog",)


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


@pytest.mark.parametrize("content", [None, "nothing", "no picture", "an empty class", "a file"])
def test_a_folder_without_pictures_is_told_what_is_wanted(
    tmp_path: Path, content: str | None
) -> None:
    folder = tmp_path / "photos"
    if content == "a file":
        folder.write_text("")
    elif content is not None:
        folder.mkdir()
    if content == "no picture":
        (folder / "x.txt").write_text("")
    if content == "an empty class":
        (folder / "dog").mkdir()
    with pytest.raises(
        FileNotFoundError, match="wants pictures, or one sub-folder of them a class"
    ) as at:
        open_pictures(f"folder:{folder}")
    assert str(folder) in str(at.value)
    assert "\n" not in str(at.value)


def test_one_picture_cannot_be_divided(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "x.png")
    assert len(open_pictures(f"folder:{tmp_path}", "test")) == 1
    with pytest.raises(ValueError, match="too few pictures to hold some out: 1"):
        open_pictures(f"folder:{tmp_path}", "train")


# --- what tells pictures apart ----------------------------------------------------------------


def identity(spec: str) -> str:
    return pictures_identity(open_pictures(spec, size=4), spec, "train")["hash"]


def replaced(path: Path) -> None:
    """Change a file, but neither its size nor its time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "dog" / "05.png").rename(root / "dog" / "05b.png"),
        lambda root: (root / "dog" / "05.png").rename(root / "sea_lion" / "05.png"),
        lambda root: write(root / "dog" / "05.png", GREEN),
        lambda root: replaced(root / "dog" / "05.png"),
        lambda root: (root / "dog").rename(root / "cat"),
        lambda root: swap(root / "dog" / "05.png", root / "sea_lion" / "15.png"),
    ],
    ids=["renamed", "another class", "another picture", "of the same size and time", "class",
         "two exchanged"],
)  # fmt: skip
def test_a_changed_folder_has_another_identity(photos: Path, change: Callable) -> None:
    before = identity(f"folder:{photos}")
    assert identity(f"folder:{photos}") == before
    change(photos)
    assert identity(f"folder:{photos}") != before


def swap(a: Path, b: Path) -> None:
    a.rename(a.with_suffix(".x"))
    b.rename(a)
    a.with_suffix(".x").rename(b)


def test_files_of_the_same_size_and_time_are_told_apart_by_name(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, files = os.stat(photos), [*photos.rglob("*.png")]
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *_, **__: stat)
        lines = {*stamps(files)}
    assert len(lines) == 20


def test_changed_shards_have_another_identity(tmp_path: Path) -> None:
    path = shards(tmp_path, 20) / "000.tar"
    before = identity(f"wds:{path}")
    assert identity(f"wds:{path}") == before
    stat, content = path.stat(), path.read_bytes()
    assert len(encoded(3)) == len(encoded(5))
    path.write_bytes(content.replace(encoded(3), encoded(5)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.read_bytes() == content) == (stat.st_size, False)
    assert identity(f"wds:{path}") != before


def test_changed_data_of_torchvision_have_another_identity(imagenet: Path) -> None:
    before = identity("torchvision:ImageNet")
    assert identity("torchvision:ImageNet") == before
    write(imagenet / "train" / "n01440764" / "a.JPEG", GREEN)
    assert identity("torchvision:ImageNet") != before


def test_a_changed_file_of_a_packed_data_set_is_seen(torchvision_data: Path) -> None:
    raw = torchvision_data / "MNIST" / "raw"
    idx(raw / "train-images-idx3-ubyte", np.zeros((6, 28, 28)))
    idx(raw / "train-labels-idx1-ubyte", np.arange(6))
    for name in ("images-idx3", "labels-idx1"):
        shutil.copy(raw / f"train-{name}-ubyte", raw / f"t10k-{name}-ubyte")
    before = identity("torchvision:MNIST")
    middle = np.zeros((6, 28, 28))
    middle[2] = 9
    idx(raw / "train-images-idx3-ubyte", middle)
    assert identity("torchvision:MNIST") != before


def test_chosen_pictures_of_the_same_ends_are_told_apart() -> None:
    world = World("land", "test", 8)
    hashes = [
        pictures_identity(Subset(world, rows), "world:land", "test")["hash"]
        for rows in ([0, 2, 5], [0, 3, 5])
    ]
    assert hashes[0] != hashes[1]
    assert pictures_identity(Subset(world), "world:land", "test") == pictures_identity(
        world, "world:land", "test"
    )


# --- what can be asked for -----------------------------------------------------------------------


def test_the_world_is_the_world() -> None:
    world = open_pictures("world:land", "test", n=5)
    assert isinstance(world, World)
    assert (world.task.name, world.split, len(world)) == ("land", "test", 5)
    assert len(open_pictures("world")) == 6_000


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wds:https://x/a.tar", "from disk, not from the network"),
        (
            "/my/photos",
            "'/my/photos' are unknown: give world, world:TASK, folder:PATH, ",
        ),
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
    assert train.class_names == ("abyssinian", "american bulldog")
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
    names = class_names(data, [])
    assert (names[134], names[517]) == ("crane bird", "construction crane")


def test_a_broken_file_of_a_data_set_is_named(imagenet: Path) -> None:
    (imagenet / "val" / "n01440764" / "b.JPEG").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1 pictures left out: .*b\.JPEG cannot be read"):
        assert len(open_pictures("torchvision:ImageNet", "test")) == 1


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
    assert "download=" not in str(raised.value)
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
        class_labels(datasets.FakeData(3))


def test_classes_without_names_are_called_by_their_numbers() -> None:
    assert class_names(datasets.FakeData(3), [0, 2, 1]) == ["0", "1", "2"]


def test_flowers_are_those_of_train_and_val(
    torchvision_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = torchvision_data / "flowers-102"
    for i in range(1, 7):
        write(root / "jpg" / f"image_{i:05}.jpg")
    savemat(root / "imagelabels.mat", {"labels": [[1, 2, 102, 1, 77, 5]]})
    savemat(root / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 6]], "tstid": [[5, 4]]})
    files = {  # torchvision refuses files that are not the published ones
        key: (name, hashlib.md5((root / name).read_bytes()).hexdigest())
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    train, test = (open_pictures("torchvision:Flowers102", s, size=4) for s in ("train", "test"))
    assert sorted(train.label(i) for i in range(4)) == [0, 1, 4, 101]
    assert sorted(test.label(i) for i in range(2)) == [0, 76]
    assert (len(train.class_names), train.class_names[0]) == (102, "pink primrose")


def test_textures_are_those_of_train_and_val(torchvision_data: Path) -> None:
    root = torchvision_data / "dtd" / "dtd"
    (root / "labels").mkdir(parents=True)
    for i, split in enumerate(("train", "val", "test")):
        lines = [f"{c}/{c}_{i}.jpg" for c in ("banded", "zigzagged")]
        (root / "labels" / f"{split}1.txt").write_text("\n".join(lines))
        for line in lines:
            write(root / "images" / line, tone(i))
    train, test = (open_pictures("torchvision:DTD", s, size=4) for s in ("train", "test"))
    assert (len(train), len(test)) == (4, 2)
    assert test.class_names == ("banded", "zigzagged")


def test_caltech_has_one_set_of_faces(torchvision_data: Path) -> None:
    root = torchvision_data / "caltech101" / "101_ObjectCategories"
    for name in ("Faces", "Faces_easy", "BACKGROUND_Google", "airplanes", "crocodile_head"):
        for i in range(1, 6):
            write(root / name / f"image_{i:04}.jpg")
    train = open_pictures("torchvision:Caltech101", "train", size=4)
    test = open_pictures("torchvision:Caltech101", "test", size=4)
    assert train.class_names == ("face", "airplane", "crocodile head")
    assert (len(train), len(test)) == (12, 3)
    assert {p.label(i) for p in (train, test) for i in range(len(p))} == {0, 1, 2}
    assert train.batch([0]).shape == (1, 3, 4, 4)


def test_aircraft_are_variants(torchvision_data: Path) -> None:
    data = torchvision_data / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("707-320\nA300B4\n")
    for split, rows in (("trainval", "01 A300B4\n02 707-320\n"), ("test", "03 A300B4\n")):
        (data / f"images_variant_{split}.txt").write_text(rows)
        for row in rows.splitlines():
            write(data / "images" / f"{row[:2]}.jpg")
    train, test = (open_pictures("torchvision:FGVCAircraft", s, size=4) for s in ("train", "test"))
    assert train.class_names == ("707-320", "A300B4")
    assert (len(train), len(test), test.label(0)) == (2, 1, 1)


def test_scenes_say_the_kind_before_the_place(torchvision_data: Path) -> None:
    root = torchvision_data / "SUN397"
    root.mkdir()
    (root / "ClassName.txt").write_text("/a/abbey\n/a/apse/indoor\n")
    for i in range(5):
        write(root / "a" / "abbey" / f"sun_{i}.jpg")
        write(root / "a" / "apse" / "indoor" / f"sun_{i}.jpg")
    train, test = (open_pictures("torchvision:SUN397", s, size=4) for s in ("train", "test"))
    assert train.class_names == ("abbey", "indoor apse")
    assert (len(train), len(test)) == (8, 2)


def test_cars_say_the_year_first(torchvision_data: Path) -> None:
    root = torchvision_data / "stanford_cars"
    names = np.array(["Audi A3 2012", "Ram C/V Cargo Van 2012"], dtype=object)
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    kind = [("fname", object), ("class", object)]
    for split, at in (("train", root / "devkit"), ("test", root)):
        rows = np.array([(f"{split}{i}.jpg", i + 1) for i in range(2)], dtype=kind)
        mat = "cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
        savemat(at / mat, {"annotations": rows})
        for i in range(2):
            write(root / f"cars_{split}" / f"{split}{i}.jpg", tone(i))
    for split in ("train", "test"):
        cars = open_pictures("torchvision:StanfordCars", split, size=4)
        assert cars.class_names == ("2012 Audi A3", "2012 Ram C/V Cargo Van")
        assert [cars.label(i) for i in range(2)] == tones(cars, 2)


@pytest.mark.parametrize("lists", [True, False])
def test_actions_are_frames_in_folders(torchvision_data: Path, lists: bool) -> None:
    root = torchvision_data / "ucf101"
    for name in ("Yo_Yo", "Band_Marching"):
        for i in range(5):
            write(root / "UCF-101-midframes" / name / f"v_{name.replace('_', '')}_g0{i}.jpg")
    with pytest.raises(FileNotFoundError, match=r"no UCF-101-midframes in .*TORCHVISION_DATA"):
        torchvision("UCF101", "train") if shutil.move(root, root.with_name("x")) else None
    shutil.move(root.with_name("x"), root)
    if lists:
        (root / "ucfTrainTestlist").mkdir()
        for name, rows in {
            "classInd": ["1 YoYo", "2 BandMarching"],  # an order that is not the alphabet's
            "trainlist01": ["YoYo/v_YoYo_g00.avi 1", "BandMarching/v_BandMarching_g00.avi 2"],
            "testlist01": ["YoYo/v_YoYo_g03.avi"],
        }.items():
            (root / "ucfTrainTestlist" / f"{name}.txt").write_text("\n".join(rows))
    train, test = (open_pictures("torchvision:UCF101", s, size=4) for s in ("train", "test"))
    names = ("Yo Yo", "Band Marching") if lists else ("Band Marching", "Yo Yo")
    assert train.class_names == names
    assert (len(train), len(test)) == ((2, 1) if lists else (8, 2))
    if lists:
        assert test.label(0) == 0


# --- webdataset ----------------------------------------------------------------------------------


def encoded(i: int) -> bytes:
    """The bytes of a picture of tone `i`."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8), tone(i)).save(content, "png")
    return content.getvalue()


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def shards(folder: Path, per_shard: int = 4, n: int = 10, labels: bool = True) -> Path:
    """Shards 000, 001, … as the webdataset package writes them."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(f"{folder}/%03d.tar", maxcount=per_shard, verbose=0) as out:
        for i in range(n):
            row = {"__key__": f"sample{i:04}", "png": encoded(i), "txt": "a caption"}
            out.write(row | ({"cls": i % 3} if labels else {}))
    return folder


@pytest.mark.parametrize("pattern", ["{000..002}.tar", "*.tar"])
def test_shards_are_read_where_they_lie(tmp_path: Path, pattern: str) -> None:
    folder = shards(tmp_path / "set")
    (tmp_path / "classnames.txt").write_text("red_fox\nowl\ncat\n")
    spec = f"wds:{folder}/{pattern}"
    train, test = (open_pictures(spec, s, size=4) for s in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    seen = tones(train, 8) + tones(test, 2)
    assert sorted(seen) == list(range(10))
    labels = [p.label(i) for p in (train, test) for i in range(len(p))]
    assert labels == [tone % 3 for tone in seen]
    assert train.class_names == ("red fox", "owl", "cat")


def test_shards_of_splits_and_without_labels(tmp_path: Path) -> None:
    shards(tmp_path / "train", labels=False)
    shards(tmp_path / "val", n=2, labels=False)
    spec = f"wds:{tmp_path}/{{split}}/*.tar"
    train, test = (open_pictures(spec, s, size=4) for s in ("train", "test"))
    assert (len(train), len(test)) == (10, 2)
    assert (train.class_names, train.label(0)) == ((), -1)


def test_a_broken_picture_in_a_shard_is_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(6):
            add_file(tar, f"k{i}.jpg", b"no picture" if i == 2 else encoded(i))
            add_file(tar, f"k{i}.cls", b"0")
    with pytest.warns(UserWarning, match=r"1 pictures left out: .*a\.tar/k2\.jpg cannot be read"):
        parts = [open_pictures(f"wds:{tmp_path}/a.tar", s) for s in ("train", "test")]
    assert sum(map(len, parts)) == 5


def test_shards_of_tar_with_folders_and_points_in_names(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(5):
            add_file(tar, f"./v1.0/{i}.seg.png", encoded(20))  # a mask is no picture
            add_file(tar, f"./v1.0/{i}.png", encoded(i))
            add_file(tar, f"./v1.0/{i}.cls", str(i).encode())
    train, test = (open_pictures(f"wds:{tmp_path}/a.tar", s, size=4) for s in ("train", "test"))
    seen = tones(train, 4) + tones(test, 1)
    assert sorted(seen) == list(range(5))
    assert [train.label(i) for i in range(4)] == seen[:4]


@pytest.mark.parametrize("how", ["gz", "text", "missing", "no pictures", "few names", "word"])
def test_what_is_wrong_with_shards_is_said(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz" if how == "gz" else "w") as tar:
        if how != "no pictures":
            add_file(tar, "k.png", encoded(0))
            add_file(tar, "k.cls", b"owl" if how == "word" else b"3")
    if how == "text":
        path.write_text("not a tar file at all" * 100)
    if how == "missing":
        path.unlink()
    if how == "few names":
        (tmp_path / "classnames.txt").write_text("only one")
    kind, message = {
        "gz": (ValueError, "a.tar is not a whole, uncompressed shard"),
        "text": (ValueError, "a.tar is not a whole, uncompressed shard"),
        "missing": (FileNotFoundError, "no file .*a.tar"),
        "no pictures": (FileNotFoundError, "no pictures in 1 shards"),
        "few names": (ValueError, "names 1 classes, a label is 3"),
        "word": (ValueError, "a.tar: k.cls holds b'owl', not a class's number"),
    }[how]
    with pytest.raises(kind, match=message):
        open_pictures(f"wds:{path}")


def packed(path: Path, *members: tuple[str, bytes]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            add_file(tar, name, content)
    return f"wds:{path}"


def samples(n: int, name: str = "{}.png", label: str = "{}.cls") -> list[tuple[str, bytes]]:
    """Pictures of tones 0, 1, … whose class is 0 or 1."""
    pairs = [((name.format(i), encoded(i)), (label.format(i), b"%d" % (i % 2))) for i in range(n)]
    return [member for pair in pairs for member in pair]


def seen(spec: str) -> tuple[dict[int, int], tuple[str, ...], list[str]]:
    """The classes of all pictures of a spec by their tones, the names, and what was left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [open_pictures(spec, s, size=4) for s in ("train", "test")]
    classes = {
        tone: part.label(i) for part in parts for i, tone in enumerate(tones(part, len(part)))
    }
    return classes, parts[0].class_names, parts[0].skipped


ALTERNATING = {i: i % 2 for i in range(10)}


@pytest.mark.parametrize(
    ("members", "expected", "skipped"),
    [
        (samples(10, "{}.PNG", "{}.CLS"), ALTERNATING, 0),
        (samples(10, "v1.0/{}.png", "v1.0/{}.cls"), ALTERNATING, 0),
        (samples(10) + [(f"{i}.seg.png", encoded(20)) for i in range(10)], ALTERNATING, 0),
        (samples(10) + [(f"x{i}.05.png", encoded(20)) for i in range(3)], ALTERNATING, 3),
        ([(f"._{n}", b"\0\5\26\7") for n, _ in samples(10)] + samples(10), ALTERNATING, 0),
        (samples(10) + [(f"{i}.jpg", encoded(20)) for i in range(10)], ALTERNATING, 10),
        ([(n, b" -1\n" if n == "3.cls" else x) for n, x in samples(10)],
         ALTERNATING | {3: -1}, 0),
        ([(n, x) for n, x in samples(10) if n != "3.cls"], ALTERNATING | {3: -1}, 0),
    ],
    ids=["capitals", "points in folders", "masks", "points in keys", "AppleDouble", "two of a key",
         "label -1", "no label"],
)  # fmt: skip
def test_shards_as_they_come(
    tmp_path: Path, members: list, expected: dict[int, int], skipped: int
) -> None:
    classes, names, left_out = seen(packed(tmp_path / "a.tar", *members))
    assert classes == expected
    assert names == ("0", "1")
    assert len(left_out) == skipped
    assert all("a.tar/" in line for line in left_out)


def test_links_in_shards_are_counted_and_folders_are_not(tmp_path: Path) -> None:
    spec = packed(tmp_path / "a.tar", *samples(10))
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind in (("88.jpg", tarfile.SYMTYPE), ("99.cls", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "0.png"
            tar.addfile(member)
    classes, _, skipped = seen(spec)
    assert classes == ALTERNATING
    assert [line.rpartition("/")[2] for line in skipped] == ["88.jpg is a link, not a file"]


@pytest.mark.parametrize("cut", ["between members", "in a header", "in a file", "of the last"])
def test_a_shard_that_is_cut_short_is_an_error_with_its_name(tmp_path: Path, cut: str) -> None:
    spec = packed(tmp_path / "a.tar", *samples(10))
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    at = {
        "between members": members[8].offset,
        "in a header": members[8].offset + 100,
        "in a file": members[8].offset_data + 10,
        "of the last": members[-1].offset_data + 512,
    }[cut]
    os.truncate(tmp_path / "a.tar", at)
    with pytest.raises(ValueError, match=r"a\.tar is not a whole, uncompressed shard"):
        open_pictures(spec)


def test_a_shard_of_two_is_an_error(tmp_path: Path) -> None:
    packed(tmp_path / "a.tar", *samples(5))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content + content)
    with pytest.raises(ValueError, match=r"a\.tar is not a whole.*it goes on after its end"):
        open_pictures(f"wds:{tmp_path / 'a.tar'}")
    spec = packed(tmp_path / "b.tar", *samples(5), *samples(5))
    with pytest.raises(ValueError, match=r"b\.tar: it holds 0\.png twice"):
        open_pictures(spec)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"cat\nred_owl\n\n", ("cat", "red owl")),
        ("\ufeffcat\r\nred owl\r\n".encode(), ("cat", "red owl")),
        ("café\nhund".encode("latin-1"), ("café", "hund")),
        ("café\nhund\n".encode("utf-16"), ("café", "hund")),
        (b"n01440764 tench\nn03126707 crane\n", ("tench", "crane")),
        ("a\u2028b\nc".encode(), ("a\u2028b", "c")),
        (b"cat\ncat\n", ("cat", "cat (no. 2)")),
    ],
)
def test_class_names_as_they_are_written(
    tmp_path: Path, content: bytes, names: tuple[str, ...]
) -> None:
    (tmp_path / "classnames.txt").write_bytes(content)
    assert seen(packed(tmp_path / "a.tar", *samples(10)))[:2] == (ALTERNATING, names)


@pytest.mark.parametrize(
    ("label", "listed", "message"),
    [
        (b"100000000", "", "a label is 100,000,000, but classes are numbered from 0"),
        (b"100000000", "cat\ndog", "classnames.txt names 2 classes, a label is 100,000,000"),
        (b"1", "cat\n\ndog", "classnames.txt: line 2 is blank"),
        (b"1.0", "", "a.tar: k.cls holds b'1.0', not a class's number"),
        (b"", "", "a.tar: k.cls holds b'', not a class's number"),
        (b"9" * 5000, "", "a.tar: "),
    ],
)
def test_labels_and_names_that_do_not_fit(
    tmp_path: Path, label: bytes, listed: str, message: str
) -> None:
    if listed:
        (tmp_path / "classnames.txt").write_text(listed)
    spec = packed(tmp_path / "a.tar", ("k.png", encoded(0)), ("k.cls", label))
    with pytest.raises(ValueError, match=message):
        open_pictures(spec)


def test_a_key_with_a_point_is_told_the_rule(tmp_path: Path) -> None:
    spec = packed(tmp_path / "a.tar", *samples(4, "{}.05.png", "{}.05.cls"))
    with pytest.raises(FileNotFoundError, match=r"a\.tar/0\.05\.png has a dot in its key"):
        open_pictures(spec)


# --- Hugging Face --------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set on disk as `datasets` publishes one, in parquet files; train only."""
    library = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    features = library.Features(
        {"img": library.Image(), "label": library.ClassLabel(names=["sea_lion", "owl"])}
    )
    rows = {"img": [{"bytes": encoded(i)} for i in range(20)], "label": [i % 2 for i in range(20)]}
    made = library.Dataset.from_dict(rows, features)
    (tmp_path / "set" / "data").mkdir(parents=True)
    made.to_parquet(tmp_path / "set" / "data" / "train-00000.parquet")
    return tmp_path / "set"


def test_a_data_set_of_the_hub_is_streamed_once(
    hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = (open_pictures(f"hf:{hub}", s, size=4) for s in ("train", "test"))
    assert (len(train), len(test)) == (16, 4)
    seen = tones(train, 16) + tones(test, 4)
    assert sorted(seen) == list(range(20))  # every one once
    assert [train.label(i) for i in range(16)] == [t % 2 for t in seen[:16]]
    assert train.class_names == ("sea lion", "owl")
    said = capsys.readouterr().out
    assert "streaming" in said
    assert "MB" in said or "size unknown" in said
    assert tones(open_pictures(f"hf:{hub}", size=4), 16) == seen[:16]
    assert capsys.readouterr().out == ""
    shutil.copy(hub / "data" / "train-00000.parquet", hub / "data" / "train-00001.parquet")
    assert len(open_pictures(f"hf:{hub}", size=4)) == 32  # a folder may change


def test_a_data_set_of_the_hub_has_its_own_test_split(hub: Path) -> None:
    shutil.copy(hub / "data" / "train-00000.parquet", hub / "data" / "validation-00000.parquet")
    train, test = (open_pictures(f"hf:{hub}", s, n=7, size=4) for s in ("train", "test"))
    assert (len(train), len(test)) == (7, 7)
    assert len(open_pictures(f"hf:{hub}", "test", size=4)) == 20


def test_pictures_inside_other_files_and_rows_without_any(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = pytest.importorskip("datasets")
    made = tmp_path / "zipped"
    made.mkdir()
    for i in range(6):
        write(made / "x" / f"{i}.png", tone(i))
    shutil.make_archive(str(made / "train"), "zip", made / "x")
    shutil.rmtree(made / "x")
    parts = [open_pictures(f"hf:{made}", s, size=4) for s in ("train", "test")]
    assert sorted(tones(parts[0], 4) + tones(parts[1], 2)) == list(range(6))
    rows = {"img": [{"bytes": encoded(0)}, None, {"bytes": encoded(2)}]}
    features = library.Features({"img": library.Image()})
    shutil.rmtree(hub / "data")
    (hub / "data").mkdir()
    library.Dataset.from_dict(rows, features).to_parquet(hub / "data" / "test-0.parquet")
    assert sorted(tones(open_pictures(f"hf:{hub}", "test", size=4), 2)) == [0, 2]


def test_a_killed_stream_leaves_nothing_that_is_taken_for_whole(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets.arrow_writer import ArrowWriter

    calls, write = iter(range(9)), ArrowWriter.write

    def killed(*args: object) -> None:
        next(calls)  # StopIteration on the tenth
        write(*args)

    monkeypatch.setattr(ArrowWriter, "write", killed)
    with pytest.raises((StopIteration, RuntimeError, OSError)):
        open_pictures(f"hf:{hub}")
    assert list((hub.parent / "cache" / "patchsae").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(hub.parent / "cache"))
    assert len(open_pictures(f"hf:{hub}")) == 16


def table(folder: Path, features: object, part: str = "train", **columns: list) -> None:
    """Write a part of a data set, as `datasets` publishes it."""
    library = pytest.importorskip("datasets")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows = {"image": [{"bytes": encoded(i)} for i in range(12)]} | columns
    features = library.Features({"image": library.Image(), **features})
    library.Dataset.from_dict(rows, features).to_parquet(folder / "data" / f"{part}-0.parquet")


@pytest.mark.parametrize("missing", [-1, None])
def test_pictures_of_the_hub_of_which_some_have_no_label(
    hub: Path, tmp_path: Path, missing: int | None
) -> None:
    library = pytest.importorskip("datasets")
    kind = library.ClassLabel(names=["cat\nbig", "dog", ""])  # a name may be anything
    labels = [i % 2 if i < 6 else missing for i in range(12)]
    table(tmp_path / "some", {"label": kind}, label=labels)
    parts = [open_pictures(f"hf:{tmp_path / 'some'}", s, size=4) for s in ("train", "test")]
    for part in parts:
        expected = [tone % 2 if tone < 6 else -1 for tone in tones(part, len(part))]
        assert labels_of(part).tolist() == expected
        assert part.class_names == ("cat\nbig", "dog", "")


@pytest.mark.parametrize("column", ["label", "labels", "fine"])
def test_a_test_split_of_the_hub_whose_labels_are_secret_is_not_used(
    hub: Path, tmp_path: Path, column: str
) -> None:
    library = pytest.importorskip("datasets")
    kind = {column: library.ClassLabel(names=["cat", "dog"])}
    table(tmp_path / "secret", kind, **{column: [i % 2 for i in range(12)]})
    table(tmp_path / "secret", kind, "test", **{column: [-1] * 12})
    test = open_pictures(f"hf:{tmp_path / 'secret'}", "test", size=4)
    assert (len(test), sorted({*labels_of(test).tolist()})) == (3, [0, 1])


def test_files_of_the_hub_are_kept_as_they_are(hub: Path, tmp_path: Path) -> None:
    made = tmp_path / "zipped"
    (made / "x").mkdir(parents=True)
    for i in range(5):
        Image.new("CMYK", (8, 8), (0, 0, 0, 10 * i)).save(made / "x" / f"{i}.jpg")
    expected = {(made / "x" / f"{i}.jpg").read_bytes() for i in range(5)}
    shutil.make_archive(str(made / "train"), "zip", made / "x")
    shutil.rmtree(made / "x")
    parts = [open_pictures(f"hf:{made}", s, size=4) for s in ("train", "test")]
    kept = {p.source.item(i).getvalue() for p in parts for i in range(len(p))}
    assert kept == expected


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        ("int64", [0, 1], ("0", "1")),
        ("int32", [3, 10**8], ("3", "100000000")),
        ("uint8", [0, 255], ("0", "255")),
        ("string", ["red_owl", "zebra"], ("red owl", "zebra")),
        ("large_string", ["1", "b\nc"], ("1", "b\nc")),
        ("bool", [False, True], ("False", "True")),
    ],
)
@pytest.mark.parametrize("column", ["label", "category"])
def test_labels_of_the_hub_that_are_values(
    hub: Path, tmp_path: Path, column: str, kind: str, values: list, names: tuple[str, ...]
) -> None:
    library = pytest.importorskip("datasets")
    labels = [None if i == 4 else values[i % 2] for i in range(12)]
    table(tmp_path / "plain", {column: library.Value(kind)}, **{column: labels})
    parts = [open_pictures(f"hf:{tmp_path / 'plain'}", s, size=4) for s in ("train", "test")]
    for part in parts:
        assert part.class_names == names
        expected = [-1 if tone == 4 else tone % 2 for tone in tones(part, len(part))]
        assert labels_of(part).tolist() == expected


def test_a_class_that_train_has_not_is_named(hub: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    kind = {"label": library.Value("string")}
    table(tmp_path / "new", kind, label=["cat", "dog"] * 6)
    table(tmp_path / "new", kind, "test", label=["cat", "owl"] * 6)
    with pytest.raises(
        OSError, match=r"hf:.*broke off: label is 'owl', which no picture of train"
    ):
        open_pictures(f"hf:{tmp_path / 'new'}", "test")


@pytest.mark.parametrize(
    "error",
    [ImportError("Using SOCKS proxy, but the 'socksio' package is not installed"),
     KeyError("features"), AttributeError("x")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_the_hub_raises_is_one_line_with_its_name(
    hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    library = pytest.importorskip("datasets")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(library, "load_dataset", fail)
    with pytest.raises(FileNotFoundError, match=r"hf:a/b cannot be opened: ") as raised:
        open_pictures("hf:a/b")
    assert str(error) in str(raised.value)


def test_a_broken_picture_of_the_hub_is_left_out(hub: Path, tmp_path: Path) -> None:
    contents = [{"bytes": b"no picture" if i == 2 else encoded(i)} for i in range(12)]
    table(tmp_path / "broken", {}, image=contents)
    with pytest.warns(
        UserWarning, match=r"1 pictures left out: .*arrow, number \d+, cannot be re"
    ):
        parts = [open_pictures(f"hf:{tmp_path / 'broken'}", s) for s in ("train", "test")]
    assert sum(map(len, parts)) == 11


@pytest.mark.parametrize(
    ("spec", "package"), [("hf:x/y", "datasets"), ("torchvision:DTD", "scipy")]
)
def test_a_missing_package_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, spec: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    def needs(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(datasets, "DTD", needs)
    with pytest.raises(ImportError, match=f"is read with the package {package}: install it"):
        open_pictures(spec)


def test_a_data_set_that_the_hub_does_not_have(hub: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"hf:.*nowhere cannot be opened"):
        open_pictures(f"hf:{hub}/nowhere")


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

    once = ReadOnce(Counted())
    assert torch.equal(once.batch([3, 1, 3]), world.batch([3, 1, 3]))
    assert torch.equal(once.batch([1, 2]), world.batch([1, 2]))
    assert asked == [3, 1, 2]
    assert (len(once), once.label(3), once.class_names) == (8, 3, world.class_names)
    assert template_of(ReadOnce(world)) == "a photo of a {}"
    assert template_of(Counted()) == "a photo of a {}."


def test_a_subset_has_its_own_order_and_classes_unless_others_are_given() -> None:
    world = World("land", "test", 8)
    subset = Subset(world, [5, 2, 5])
    assert torch.equal(subset.batch([2, 1]), world.batch([5, 2]))
    assert labels_of(subset).tolist() == [world.label(i) for i in (5, 2, 5)]
    assert subset.class_names == world.class_names
    renamed = Subset(world, [5, 2], labels=[-1, 0], class_names=["forest"])
    assert (labels_of(renamed).tolist(), renamed.class_names) == ([-1, 0], ("forest",))
    assert captions_of(renamed) == [world.caption(5), world.caption(2)]
    relabelled = Subset(world, labels=range(8))
    assert torch.equal(relabelled.batch(range(8)), world.batch(range(8)))
    with pytest.raises(ValueError, match="1 labels for 2 pictures"):
        Subset(world, [5, 2], labels=[0])


def test_a_subset_of_pictures_without_classes_has_none(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"{i}.png", tone(i))
    pictures = open_pictures(f"folder:{tmp_path}", size=4)
    subset = Subset(Subset(pictures, [3, 0, 1]), [0, 2])
    assert (labels_of(subset).tolist(), subset.class_names) == ([-1, -1], ())
    assert tones(subset, 2) == [tones(pictures, 4)[3], tones(pictures, 2)[1]]


def test_the_world_is_seen_through_pictures_read_once_and_not_through_a_subset() -> None:
    world = World("land", "test", 8)
    assert world_of(ReadOnce(world)) is world_of(world) is world
    assert world_of(Subset(world)) is world_of(ReadOnce(Subset(world))) is None
