"""Images of rows: whatever form a row has them in, they become encoded bytes, as they are in a file; and `decode`, which makes
pixels of them late, one image at a time.

Called where rows become samples, and by the processors of checkpoints (`slime_core.data.vision`). Pillow is imported when the
first image is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote

from slime_core.data.shown import shown
from slime_core.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 1 << 26
"""Pixels that an image may have (8192 × 8192). A file of kilobytes can ask for gigabytes of them."""
MAX_BYTES = 64 << 20
"""Bytes that an encoded image may have."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no format of which Pillow runs another program
_BEGINNINGS = {
    b"\x89PNG": "png",
    b"\xff\xd8": "jpeg",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{32,}={0,2}\s*")
_SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")  # of Qwen's own rows
_LONGEST_PATH = 4096
_SECONDS = 20
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112  # of TIFF and EXIF
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations
T = TypeVar("T")


@dataclass(frozen=True)
class ImageRules:
    """Where images of rows may come from.

    Attributes:
        folders: folders with image files, besides the folder of the data file.
        fetch: whether addresses (http, https) are fetched.
        files: whether there are image files at all. Without, a text is a data URL or base64, and no path is looked at.
    """

    folders: tuple[str, ...] = ()
    fetch: bool = False
    files: bool = True


NO_RULES = ImageRules()
"""Images lie beside their data file."""


def encoded(value: Any, folder: Path, rules: ImageRules) -> bytes:
    """Return the encoded bytes of an image.

    Args:
        value: bytes; a path, relative to the data file; a data URL; base64; an object with one of these under `bytes`, `path`,
            `image`, `image_url`, `url` or `base64`; or an image of Pillow.
        folder: that of the data file.

    Raises:
        DataError: it is none of these, or the file is missing, too large, or outside of the folders; without file and row.
    """
    if isinstance(value, dict):
        return encoded(_of_object(value), folder, rules)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _sized(bytes(value))
    if isinstance(value, str) and value:
        return _sized(_of_text(value, folder, rules))
    if hasattr(value, "save") and hasattr(value, "convert"):  # Pillow's, which nothing here has imported yet
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return buffer.getvalue()
    raise DataError(
        f"an image is {shown(value)}; expected a path, bytes, base64, a data URL, or an object with one of them as 'bytes', "
        "'path' or 'image'"
    )


def data_url(data: bytes) -> str:
    """Return an encoded image as a data URL, which names its format by its first bytes."""
    kind = next((kind for begin, kind in _BEGINNINGS.items() if data.startswith(begin)), "x-portable-anymap")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class Size(NamedTuple):
    """How large an image is, in pixels."""

    width: int
    height: int


def size_of(data: bytes) -> Size:
    """Return the size that `decode` gives an encoded image, from its beginning alone: its pixels may be broken all the same.

    Raises:
        DataError, ArgumentError: as `decode`.
    """

    def read(image: Image) -> Size:
        exif = image.getexif()
        # Versions of Pillow turn a TIFF's size when they open it, or not before its pixels are read.
        width, height = (exif[_WIDTH], exif[_HEIGHT]) if image.format == "TIFF" else image.size
        return Size(height, width) if exif.get(_ORIENTATION) in _ON_ITS_SIDE else Size(width, height)

    return _opened(data, read)


def decode(data: bytes, side: int | None = None) -> Image:
    """Return the pixels of an encoded image as RGB, turned as its EXIF orientation says, on white where it is transparent.

    Args:
        side: so many pixels of each side are enough. A JPEG is decoded to a smaller size then, several times as fast, if it is
            larger; other formats are decoded as they are.

    Raises:
        DataError: it cannot be decoded whole, has more than `MAX_PIXELS`, or several frames; without file and row.
        ArgumentError: Pillow is not installed.
    """

    def read(image: Image) -> Image:
        from PIL import ImageOps

        if side is not None:
            image.draft("RGB", (side, side))
        image.load()
        return ImageOps.exif_transpose(image)

    return _in_colours(_opened(data, read))


def _opened(data: bytes, read: Callable[[Image], T]) -> T:
    """Return what `read` makes of the image that is opened, if it is one that may be decoded."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ArgumentError(
            "The data has images, and Pillow is not installed, which decodes them. Install it: pip install pillow."
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is looked at here
            opened = Image.open(io.BytesIO(data), formats=_FORMATS)
            _require_fit(opened)
            return read(opened)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"an image has more than the {MAX_PIXELS:,} pixels that are decoded; make it smaller") from None
    except UnidentifiedImageError:
        raise DataError(
            f"an image of {len(data):,} bytes is in no format that is read ({', '.join(_FORMATS)})"
        ) from None
    except Exception as error:  # decoders fail in every way that broken files can make them
        raise DataError(
            f"an image of {len(data):,} bytes cannot be decoded: {str(error) or type(error).__name__}"
        ) from None


def _require_fit(image: Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"an image has {width} × {height} pixels, more than the {MAX_PIXELS:,} that are decoded; make it smaller"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photo, behind which the camera kept its preview
        raise DataError(f"an image has {frames} frames; only still images can be trained on, so save one of them")


def _in_colours(image: Image) -> Image:
    from PIL import Image

    if image.mode in _SIXTEEN_BITS:  # Pillow's own conversion would make everything above 255 white
        return image.point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(
            f"an image has pixels of the kind {image.mode!r}, whose white nobody knows; save it with 8 bits"
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        below = Image.new("RGBA", image.size, "white")
        below.alpha_composite(image.convert("RGBA"))
        image = below
    return image.convert("RGB")


def _of_object(value: dict[str, Any]) -> Any:
    if sized := [key for key in _SIZES if value.get(key) is not None]:
        raise DataError(
            f"an image has {', '.join(sized)}, a size of its own, and every image is given the one that the checkpoint's processor says; "
            "take it out, and give --image-min-pixels and --image-max-pixels for all images"
        )
    if value.get("bytes") is not None:
        return value["bytes"]
    for key in ("image", "path", "base64", "image_url", "url"):
        if value.get(key) is not None:
            return value[key]
    raise DataError(
        f"an image is an object with {', '.join(map(str, value)) or 'nothing'}; expected 'bytes', 'path', 'image', 'image_url', "
        "'url' or 'base64'"
    )


def _of_text(text: str, folder: Path, rules: ImageRules) -> bytes:
    if text.startswith("data:"):
        head, _, body = text.partition(",")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise DataError(f"an image is the data URL {shown(head)}; expected data:image/…;base64,…")
        return _from_base64(body)
    if text.startswith(("http://", "https://")):
        if not rules.fetch:
            raise DataError(
                f"an image is the address {shown(text)}, and addresses are not fetched; download it, or add --fetch-images"
            )
        return _fetched(text)
    if len(text) > _LONGEST_PATH and _BASE64.fullmatch(text):  # looking for it as a path would take minutes
        return _from_base64(text)
    if not rules.files:
        if _BASE64.fullmatch(text):
            return _from_base64(text)
        raise DataError(
            f"an image is {shown(text)}; expected a data URL, data:image/…;base64,…, or base64. No files are read"
        )
    try:
        path = _allowed(unquote(text[7:]) if text.startswith("file://") else text, folder, rules)
        if path.is_file():
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"the image {path} has more than {MAX_BYTES >> 20} MiB; make it smaller")
            return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # the last: ~name, of whom no folder is known
        if not _BASE64.fullmatch(text):
            raise DataError(f"the image {shown(text)} cannot be read: {error}") from None
    except DataError:
        if not _BASE64.fullmatch(text):
            raise
    if _BASE64.fullmatch(text):
        return _from_base64(text)
    raise DataError(
        f"there is no image file {shown(text)}; paths are relative to the folder of the data file, {folder or '.'}"
    )


def _allowed(text: str, folder: Path, rules: ImageRules) -> Path:
    """Return the file that a path names, in the first of the folders that has it."""
    found = None
    for base in (folder, *map(Path, rules.folders)):
        root = base.expanduser().resolve()
        path = (root / Path(text).expanduser()).resolve()
        if path.is_relative_to(root):
            found = found or path
            if path.is_file():
                return path
    if found is None:
        raise DataError(
            f"the image {shown(text)} lies outside of {folder.resolve()}, the folder of the data file; name its folder with "
            "--image-folders"
        )
    return found


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"an image is base64 that cannot be read: {error}") from None


def _fetched(url: str) -> bytes:
    from http.client import HTTPException

    from slime_core.data.fetching import fetched

    try:
        return fetched(url, MAX_BYTES + 1, _SECONDS)
    except (OSError, ValueError, HTTPException) as error:
        raise DataError(f"the image {shown(url)} cannot be fetched: {error}") from None


def _sized(data: bytes) -> bytes:
    if not data:
        raise DataError("an image has no bytes")
    if len(data) > MAX_BYTES:
        raise DataError(f"an image has more than {MAX_BYTES >> 20} MiB; make it smaller")
    return data
