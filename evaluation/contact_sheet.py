"""A contact sheet: pictures of a few cases side by side, each under its name."""

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

_HEAD = 28  # pixels


def contact_sheet(pictures: Mapping[str, bytes]) -> bytes:
    """One PNG from PNGs by name."""
    opened = {name: Image.open(io.BytesIO(data)) for name, data in pictures.items()}
    height = max(picture.height for picture in opened.values())
    page = Image.new("RGB", (sum(picture.width for picture in opened.values()), _HEAD + height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=17)
    left = 0
    for name, picture in opened.items():
        draw.text((left + 6, _HEAD / 2), name, fill="black", font=font, anchor="lm")
        page.paste(picture, (left, _HEAD))
        left += picture.width
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    return buffer.getvalue()
