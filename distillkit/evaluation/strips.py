"""Rows of pictures under their names, which every domain shows student and teacher in."""

from PIL import Image, ImageDraw, ImageFont


def labelled(strips: dict[str, Image.Image]) -> Image.Image:
    """The pictures one below the other, each with its name on the left.

    Raises:
        ValueError: there are none.
    """
    if not strips:
        raise ValueError("there is nothing to compare; give at least one row of samples")
    font = ImageFont.load_default()
    margin = max(int(font.getlength(name)) for name in strips) + 12
    height = sum(strip.height for strip in strips.values())
    sheet = Image.new("RGB", (margin + max(strip.width for strip in strips.values()), height), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for name, strip in strips.items():
        sheet.paste(strip, (margin, top))
        pen.text((margin - 6, top + strip.height // 2), name, fill="black", font=font, anchor="rm")
        top += strip.height
    return sheet
