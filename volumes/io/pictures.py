"""2-D pictures (PNG, JPEG, TIFF) as scans and masks, and their masks as PNG. Several files are the frames of a video.

A picture is a scan of one slice, a video has its frames along d. Pixels are 1 mm apart, rows increase to the back and
columns to the left of the RAS+ frame, frames to the head ("SPL"): a plan of that orientation sees the picture upright,
and as NIfTI it has the identity as its direction. Pillow is loaded by the first call.
"""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import BadInputError, MissingExtraError, OutputError, translated
from ..files import atomic_folder, atomic_path
from ..geometry import Geometry, Volume
from .mask_codes import Code, decoded

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
_AFFINE = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
_UNSOUND = "is no sound PNG, JPEG or TIFF picture. Export it again"
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # TIFF and EXIF tags


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def picture_geometry(shape: tuple[int, int, int]) -> Geometry:
    """The grid of a picture (D = 1) or a video (D frames)."""
    return Geometry(_AFFINE, shape, frames=True)


def picture_channels(path: Path) -> tuple[str, ...]:
    """What the channels of a picture are. Raises BadInputError."""
    return ("grey",) if len(_intensities(path)) == 1 else ("red", "green", "blue")


def memory_to_read_picture(path: Path) -> float:
    """Bytes that read_pictures holds at most for a file, from its header alone: as decoded, and twice as float32.

    Raises BadInputError, MissingExtraError.
    """
    pillow = _pillow()
    with translated(path, _UNSOUND), pillow.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
        return 9.0 * image.width * image.height * len(image.getbands())


def read_pictures(files: Sequence[Path], *, channels: int = 1) -> Volume:
    """Intensities float32 [channels, frames, H, W] as they are stored: grey has one channel, colour three (RGB).

    Raises BadInputError for what could be misread: damage (the checksums of a PNG are verified), frames of different
    sizes, transparency, a turned picture (EXIF), several pages, 16-bit colour, CMYK. MissingExtraError without Pillow.
    """
    frames = _stacked([_intensities(path) for path in files], files)
    if frames.shape[1] != channels:
        raise BadInputError(
            f"{files[0]}: has {frames.shape[1]} value(s) per pixel; expected {channels}. RGB has 3, grey has 1."
        )
    return Volume(np.ascontiguousarray(np.moveaxis(frames, 0, 1)), picture_geometry((len(files), *frames.shape[2:])))


def read_picture_labels(files: Sequence[Path], *, codes: Sequence[Code] | None = None) -> tuple[np.ndarray, Geometry]:
    """Labels [frames, H, W], uint8 or uint16, and their grid: grey levels or palette entries as they are stored.

    `codes` gives, class by class, the number or the colour that stands for it. Raises BadInputError as read_pictures
    does, and for a lossy mask and colours without codes.
    """
    colours = codes is not None and isinstance(codes[0], tuple)
    frames = [_mask_values(path, colours=colours) for path in files]
    if codes is not None:
        frames = [decoded(values, codes, path) for values, path in zip(frames, files, strict=True)]
    labels = _stacked(frames, files)
    labels = labels.astype(np.uint8 if labels.max() <= 255 else np.uint16)
    return labels, picture_geometry(labels.shape)


def write_picture_labels(path: str | Path, labels: np.ndarray, files: Sequence[Path]) -> None:
    """Write the labels [frames, H, W] of a picture as PNG, of a video as a folder of PNGs named like its frames.

    Pixels are class numbers: with a palette up to 255, 16-bit grey above. Raises BadInputError for labels that do not
    fit the frames, OutputError when the file cannot be written.
    """
    path = Path(path)
    if labels.dtype.kind not in "biu" or len(labels) != len(files) or labels.min() < 0 or labels.max() > 65535:
        raise BadInputError(f"{path}: labels {labels.shape} of type {labels.dtype} do not fit {len(files)} frame(s).")
    if len(files) == 1:
        if path.suffix.lower() != ".png":
            raise OutputError(f"{path}: expected the mask of a picture to be named *.png, *.nii or *.nii.gz.")
        _write_png(path, labels[0])
        return
    with atomic_folder(path) as draft:
        for frame, source in zip(labels, files, strict=True):
            _write_png(draft / f"{source.stem}.png", frame)


def _pillow() -> Any:
    with translated("pictures", "are read by Pillow, which is not here; pip install pillow", MissingExtraError):
        from PIL import Image
    return Image


class _Picture(NamedTuple):
    image: Any  # decoded
    bits: int  # per value
    from_white: bool  # a TIFF whose 0 is white; Pillow has turned its values over


def _open(path: Path) -> _Picture:
    pillow = _pillow()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    depth = _checked_png(data, path) if data.startswith(_PNG) else None
    with translated(path, _UNSOUND):
        image = pillow.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF"))
        pages, turned = getattr(image, "n_frames", 1), image.getexif().get(_ORIENTATION, 1)
        tags = getattr(image, "tag_v2", {})
        bits = depth or max(np.atleast_1d(tags.get(_BITS, 8)).tolist())
        image.load()
    if pages != 1:
        raise BadInputError(f"{path}: holds {pages} pictures; expected one. Save each as a file of its own.")
    if turned not in (0, 1):
        raise BadInputError(
            f"{path}: says that it is to be shown turned (EXIF orientation {turned}), so a mask may fit it or not. "
            "Turn its pixels (for example `mogrify -auto-orient`) and check its mask."
        )
    if bits > 8 and len(image.getbands()) > 1:
        raise BadInputError(f"{path}: has {bits}-bit colours, of which only 8 would be read. Save it with 8.")
    return _Picture(image, bits, tags.get(_PHOTOMETRIC) == 0)


def _checked_png(data: bytes, path: Path) -> int:
    """Verify every chunk's checksum (Pillow skips those of the pixels) up to the end mark; returns the bit depth."""
    at = len(_PNG)
    while True:
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + size
        if end + 4 > len(data):
            raise BadInputError(f"{path}: this PNG is cut off. Copy or export it again.")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            name = data[at + 4 : at + 8]
            raise BadInputError(f"{path}: this PNG is damaged (the checksum of its part {name!r}). Copy it again.")
        if data[at + 4 : at + 8] == b"IEND":
            return data[24]
        at = end + 4


def _intensities(path: Path) -> np.ndarray:
    """float32 [C, H, W]"""
    with translated(path, _UNSOUND):
        return _grey_or_rgb(_open(path).image, path)


def _grey_or_rgb(image: Any, path: Path) -> np.ndarray:
    """float32 [C, H, W]"""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA", "LA", "RGBA"):
        image = _opaque(image, path)
    if image.mode not in ("L", "RGB", "F", "I") and not image.mode.startswith("I;16"):
        raise BadInputError(f"{path}: is a picture of the kind {image.mode}; expected grey or RGB.")
    values = np.asarray(image).astype(np.float32)
    values = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    if not np.isfinite(values).all():
        raise BadInputError(f"{path}: holds pixels that are NaN or infinite; expected finite numbers.")
    return values


def _opaque(image: Any, path: Path) -> Any:
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise BadInputError(f"{path}: is partly transparent, so its pixels are not known. Save it without alpha.")
    return image.convert("L" if image.mode == "LA" else "RGB")


def _mask_values(path: Path, *, colours: bool) -> np.ndarray:
    """Stored numbers [H, W], or colours [H, W, 3]."""
    with translated(path, _UNSOUND):
        return _stored_values(_open(path), path, colours=colours)


def _stored_values(picture: _Picture, path: Path, *, colours: bool) -> np.ndarray:
    """Stored numbers [H, W], or colours [H, W, 3]."""
    image, bits, from_white = picture
    if image.format == "JPEG":
        raise BadInputError(f"{path}: a mask as JPEG has lost its exact values. Use the original as PNG or TIFF.")
    if from_white:
        raise BadInputError(f"{path}: this TIFF counts from white, so its labels are not clear. Save it as PNG.")
    if colours:
        return np.asarray(_opaque(image, path))
    if image.mode in ("RGB", "RGBA", "LA"):
        values = np.asarray(_opaque(image, path))
        if values.ndim == 3 and (values != values[..., :1]).any():
            raise BadInputError(f"{path}: is a mask in colours. Say in labels.json what each colour stands for.")
        return values[..., 0] if values.ndim == 3 else values
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise BadInputError(
            f"{path}: is a picture of the kind {image.mode}; expected a mask in grey or with a palette."
        )
    values = np.asarray(image)
    if image.mode == "L" and bits < 8:
        values = values // (255 // (2**bits - 1))  # Pillow stretches 2 and 4 bits to the whole grey range
    if values.dtype.kind == "i" and (values.min() < 0 or values.max() > 65535):
        raise BadInputError(f"{path}: holds labels from {values.min()} to {values.max()}; expected 0 to 65535.")
    return values.astype(np.uint16)


def _stacked(frames: Sequence[np.ndarray], files: Sequence[Path]) -> np.ndarray:
    for frame, path in zip(frames, files, strict=True):
        if frame.shape != frames[0].shape:
            raise BadInputError(
                f"{path}: is {frame.shape}, {files[0].name} is {frames[0].shape} (rows and columns last); the frames "
                "of a video have one size and one kind of colour."
            )
    return np.stack(frames)


def _write_png(path: Path, labels: np.ndarray) -> None:
    pillow = _pillow()
    with translated(path, "cannot be written as PNG", OutputError):
        if labels.max() <= 255:
            image = pillow.fromarray(labels.astype(np.uint8))
            image.putpalette(_palette())
        else:
            image = pillow.fromarray(labels.astype(np.uint16))
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            image.save(file, format="PNG")


def _palette() -> bytes:
    """Colours of the classes 0 (black) to 255: those of Pascal VOC, whose bits spread a class number over RGB."""
    number = np.arange(256)
    rgb = [sum(((number >> 3 * bit + channel) & 1) << 7 - bit for bit in range(8)) for channel in range(3)]
    return np.stack(rgb, axis=1).astype(np.uint8).tobytes()
