# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's picture of recovered maps, from those that `evaluate recovery --picture FOLDER` leaves.

    .venv/bin/python docs/recovery_grid.py FOLDER docs/recovery.png NAME ...

Each NAME (sphere_inlay) is one FOLDER/NAME.png: base colour, metallic, roughness and normal, true above recovered.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, LABEL, GAP = 2, 22, 8


def main(source: Path, target: Path, names: list[str]) -> None:
    pictures = [Image.open(source / f"{name}.png").convert("RGB") for name in names]
    width, height = pictures[0].width // 2, pictures[0].height // 2
    rows = -(-len(names) // COLUMNS)
    grid = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, rows * (height + LABEL)), (38, 38, 38))
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(14)
    for number, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        x, y = number % COLUMNS * (width + GAP), number // COLUMNS * (height + LABEL)
        draw.text((x + 4, y + 3), name.replace("_", ": "), fill=(230, 230, 230), font=font)
        grid.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (x, y + LABEL))
    grid.save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
