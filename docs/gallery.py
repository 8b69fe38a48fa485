# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's grid of materials, from what the demo rendered with Cycles.

    python build.py demo --out out/gallery --prompt "polished gold" --prompt ...
    .venv/bin/python docs/gallery.py out/gallery docs/materials.png [FOLDER ...]

Takes from every folder's turntable.png (or maps_turntable.png, which tests/blender/cycles_judge.py leaves in kept
evaluation jobs) the first view under both lights; with names, only from those folders and in that order.
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, LABEL = 4, 24


def main(source: Path, target: Path, names: list[str]) -> None:
    folders = [source / name for name in names] or sorted(p for p in source.iterdir() if p.is_dir())
    sheets = [sheet for folder in folders for sheet in sorted(folder.glob("*turntable.png"))[-1:]]
    if not sheets:
        sys.exit(f"There is no turntable in the folders of {source}. Run the demo with several prompts first.")
    side = Image.open(sheets[0]).height // 2
    rows = -(-len(sheets) // COLUMNS)
    grid = Image.new("RGB", (COLUMNS * 2 * side, rows * (side + LABEL)), (38, 38, 38))
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(15)
    for number, sheet in enumerate(sheets):
        x, y = number % COLUMNS * 2 * side, number // COLUMNS * (side + LABEL)
        picture = Image.open(sheet).convert("RGB")
        grid.paste(picture.crop((0, 0, side, side)), (x, y + LABEL))
        grid.paste(picture.crop((0, side, side, 2 * side)), (x + side, y + LABEL))
        prompt = json.loads((sheet.parent / "report.json").read_text("utf-8"))["prompt"]
        draw.text((x + 6, y + 3), prompt, fill=(230, 230, 230), font=font)
    grid.save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
