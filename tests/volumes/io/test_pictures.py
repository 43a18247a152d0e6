import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samkd.errors import BadInputError, MissingExtraError, OutputError
from samkd.volumes.io.pictures import (
    memory_to_read_picture,
    picture_channels,
    read_picture_labels,
    read_pictures,
    write_picture_labels,
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)


def save(path: Path, pixels, **options) -> Path:
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG from scratch: colour type `kind`, rows with their filter bytes."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_grey_has_one_channel_and_rgb_three(tmp_path, suffix):
    grey, colour = save(tmp_path / f"g{suffix}", GREY), save(tmp_path / f"c{suffix}", RGB)
    volume = read_pictures([grey])
    assert volume.array.shape == (1, 1, 5, 7) and volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0, 0], GREY)
    np.testing.assert_array_equal(read_pictures([colour], channels=3).array[:, 0], np.moveaxis(RGB, -1, 0))
    assert picture_channels(grey) == ("grey",) and picture_channels(colour) == ("red", "green", "blue")
    with pytest.raises(BadInputError, match=r"has 3 value\(s\) per pixel; expected 1"):
        read_pictures([colour])
    with pytest.raises(BadInputError, match=r"has 1 value\(s\) per pixel; expected 3"):
        read_pictures([grey], channels=3)


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path):
    path = save(tmp_path / "a.jpg", RGB)
    np.testing.assert_array_equal(np.moveaxis(read_pictures([path], channels=3).array[:, 0], 0, -1), Image.open(path))


def test_sixteen_bits_and_floats_are_exact(tmp_path):
    deep = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
    for suffix in (".png", ".tif"):
        path = save(tmp_path / f"a{suffix}", deep)
        np.testing.assert_array_equal(read_pictures([path]).array[0, 0], deep)
        np.testing.assert_array_equal(read_picture_labels([path])[0][0], deep)
    real = RNG.normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_array_equal(read_pictures([save(tmp_path / "f.tif", real)]).array[0, 0], real)
    real[2, 2] = np.nan
    with pytest.raises(BadInputError, match="NaN"):
        read_pictures([save(tmp_path / "f.tif", real)])


def test_frames_are_slices_of_one_size(tmp_path):
    files = [save(tmp_path / f"{i}.png", np.roll(RGB, i)) for i in range(3)]
    volume = read_pictures(files, channels=3)
    assert volume.array.shape == (3, 3, 5, 7) and volume.geometry.shape == (3, 5, 7)
    for i in range(3):
        np.testing.assert_array_equal(np.moveaxis(volume.array[:, i], 0, -1), np.roll(RGB, i))
    save(files[1], RGB[:-1])
    with pytest.raises(BadInputError, match=r"1\.png: .* the frames of a video"):
        read_pictures(files, channels=3)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_shallow_grey_masks_keep_their_numbers(tmp_path, depth):
    """A 2-bit PNG that stores 3 means label 3, though Pillow shows it as the grey 255."""
    top = 2**depth
    labels = (np.arange(64).reshape(4, 16) % top).astype(np.uint8)
    bits = np.unpackbits(labels[..., None], axis=-1)[..., -depth:].reshape(4, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    (tmp_path / "m.png").write_bytes(png(16, 4, depth, 0, rows))
    result, geometry = read_picture_labels([tmp_path / "m.png"])
    np.testing.assert_array_equal(result[0], labels)
    assert geometry.shape == (1, 4, 16) and geometry.axis_codes == "SPL"


def test_palette_masks_are_their_entries_or_their_colours(tmp_path):
    labels = (GREY % 3).astype(np.uint8)
    image = Image.fromarray(labels)
    colours = ((9, 9, 9), (255, 0, 0), (0, 0, 255))
    image.putpalette([v for colour in colours for v in colour])
    path = save(tmp_path / "m.png", image)
    np.testing.assert_array_equal(read_picture_labels([path])[0][0], labels)
    np.testing.assert_array_equal(read_picture_labels([path], codes=colours)[0][0], labels)
    colour = save(tmp_path / "c.png", np.array(colours, np.uint8)[labels])
    np.testing.assert_array_equal(read_picture_labels([colour], codes=colours)[0][0], labels)
    with pytest.raises(BadInputError, match="mask in colours"):
        read_picture_labels([colour])
    grey = save(tmp_path / "g.png", np.repeat(labels[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_picture_labels([grey])[0][0], labels)


def test_codes_must_cover_the_mask(tmp_path):
    path = save(tmp_path / "m.png", np.array([[0, 128], [255, 7]], np.uint8))
    with pytest.raises(BadInputError, match=r"m\.png: holds 7; the numbers .* are 0, 128, 255"):
        read_picture_labels([path], codes=(0, 128, 255))
    np.testing.assert_array_equal(read_picture_labels([path], codes=(255, 7, 128, 0))[0][0], [[3, 2], [0, 1]])


def test_masks_are_written_with_a_palette_and_read_back(tmp_path):
    scan = save(tmp_path / "a.png", GREY)
    labels = (GREY % 5)[None]
    write_picture_labels(tmp_path / "m.png", labels, [scan])
    image = Image.open(tmp_path / "m.png")
    assert image.mode == "P" and image.size == (7, 5)
    assert (image.getpalette() or [])[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]  # as Pascal VOC
    np.testing.assert_array_equal(np.asarray(image), labels[0])
    np.testing.assert_array_equal(read_picture_labels([tmp_path / "m.png"])[0], labels)
    with pytest.raises(OutputError, match=r"expected the mask of a picture to be named \*\.png"):
        write_picture_labels(tmp_path / "m.jpg", labels, [scan])
    with pytest.raises(BadInputError, match="do not fit"):
        write_picture_labels(tmp_path / "m.png", np.repeat(labels, 2, axis=0), [scan])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "m.png"]


def test_a_videos_masks_appear_together_or_not_at_all(tmp_path):
    files = [tmp_path / f"frame{i}.jpg" for i in range(3)]
    labels = np.stack([GREY % 4, GREY % 3, GREY % 2])
    write_picture_labels(tmp_path / "out", labels, files)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["frame0.png", "frame1.png", "frame2.png"]
    with pytest.raises(OutputError, match="not empty"):
        write_picture_labels(tmp_path / "out", labels, files)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def broken(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    transparent = np.dstack([RGB, np.full((5, 7), 200, np.uint8)])
    turned = Image.Exif()
    turned[274] = 6
    save(tmp_path / "pages.tif", Image.fromarray(GREY), save_all=True, append_images=[Image.fromarray(GREY)])
    (tmp_path / "deep.png").write_bytes(png(2, 1, 16, 2, b"\0" + bytes(12)))
    whole = save(tmp_path / "whole.png", RGB).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-14])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    huge = png(60000, 60000, 8, 0, b"")
    (tmp_path / "huge.png").write_bytes(huge)
    jpeg = save(tmp_path / "whole.jpg", RGB).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    save(tmp_path / "gif.png", GREY, format="GIF")
    return {
        "transparent": (save(tmp_path / "alpha.png", transparent), "partly transparent"),
        "turned": (save(tmp_path / "turned.jpg", RGB, exif=turned), "EXIF orientation 6"),
        "pages": (tmp_path / "pages.tif", "holds 2 pictures"),
        "16-bit colour": (tmp_path / "deep.png", "16-bit colours"),
        "cut PNG": (tmp_path / "cut.png", "cut off"),
        "cut JPEG": (tmp_path / "cut.jpg", "no sound PNG, JPEG or TIFF"),
        "text": (tmp_path / "text.png", "no sound"),
        "empty": (tmp_path / "empty.jpg", "no sound"),
        "larger than memory": (tmp_path / "huge.png", "no sound"),
        "another format": (tmp_path / "gif.png", "no sound"),
        "CMYK": (save(tmp_path / "cmyk.jpg", Image.new("CMYK", (4, 4))), "of the kind CMYK"),
        "missing": (tmp_path / "nowhere.png", "cannot be read"),
    }


def test_what_could_be_misread_is_refused(tmp_path):
    for name, (path, message) in broken(tmp_path).items():
        with pytest.raises(BadInputError, match=message) as caught:
            read_pictures([path], channels=3)
        assert str(path) in str(caught.value), name


def test_opaque_alpha_is_dropped(tmp_path):
    path = save(tmp_path / "a.png", np.dstack([RGB, np.full((5, 7), 255, np.uint8)]))
    np.testing.assert_array_equal(np.moveaxis(read_pictures([path], channels=3).array[:, 0], 0, -1), RGB)


def test_masks_that_lost_their_numbers_are_refused(tmp_path):
    with pytest.raises(BadInputError, match="a mask as JPEG has lost its exact values"):
        read_picture_labels([save(tmp_path / "m.jpg", GREY)])
    with pytest.raises(BadInputError, match="of the kind F"):
        read_picture_labels([save(tmp_path / "f.tif", GREY.astype(np.float32))])
    with pytest.raises(BadInputError, match="counts from white"):
        read_picture_labels([save(tmp_path / "w.tif", GREY, tiffinfo={262: 0})])
    with pytest.raises(BadInputError, match="holds labels from"):
        read_picture_labels([save(tmp_path / "i.tif", GREY.astype(np.int32) - 5)])


def test_every_flipped_bit_of_a_png_is_found(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    whole = buffer.getvalue()
    path = tmp_path / "a.png"
    for at in range(len(whole) - 12):  # up to the end mark
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(BadInputError):
            read_pictures([path])


def test_without_pillow_the_way_out_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", GREY)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match="pip install pillow"):
        read_pictures([path])


def test_the_grid_of_pictures_says_that_d_counts_frames(tmp_path):
    """Scores need to know it: no distance leads from one frame to another."""
    files = [save(tmp_path / f"{name}.png", GREY) for name in "ab"]
    geometry = read_pictures(files).geometry
    assert geometry.frames and read_picture_labels(files)[1].frames and geometry.oriented("SAR").frames
    assert geometry.resized((2, 10, 14)).frames and not geometry.oriented("LSP").frames


def test_the_memory_of_a_picture_is_known_from_its_header_alone(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:-20])
    assert memory_to_read_picture(tmp_path / "a.png") == 9 * 40 * 30 * 3
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(BadInputError, match=r"a\.png"):
        memory_to_read_picture(tmp_path / "a.png")
