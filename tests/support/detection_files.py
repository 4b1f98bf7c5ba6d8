"""Tiny data sets of detection in their published layouts: red rectangles on black."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from repro.data.images.mosaic import Scene

RED = (250, 10, 10)


def scene(*boxes: tuple[float, ...], size: tuple[int, int] = (64, 48)) -> Scene:
    """Red boxes on black, with outlines."""
    image = Image.new("RGB", size)
    for x1, y1, x2, y2 in boxes:
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=RED)
    rows = [[0, *box, 0, (box[2] - box[0]) * (box[3] - box[1])] for box in boxes]
    outlines = [
        [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])] for x1, y1, x2, y2 in map(tuple, boxes)
    ]
    return Scene(image, np.array(rows, dtype=np.float32).reshape(-1, 7), outlines)


def write_coco(root: Path, split: str, count: int, sizes: tuple[tuple[int, int], ...]) -> None:
    """Photographs with a red rectangle each, in COCO's layout; classes 3 and 7, and a crowd."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        x, y, w, h = 4 + number, 6, 20, 14
        scene((x, y, x + w, y + h), size=(width, height)).image.save(
            folder / split / f"{number:012}.jpg", quality=95
        )
        images.append(
            {"id": number, "file_name": f"{number:012}.jpg", "width": width, "height": height}
        )
        about = {"image_id": number, "category_id": [3, 7][number % 2]}
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [polygon]}
        annotations.append({"id": 2 * number, **about, **box})
        crowd = {"bbox": [0, 0, 9, 9], "area": 50, "iscrowd": 1, "segmentation": {"counts": []}}
        annotations.append({"id": 2 * number + 1, **about, **crowd})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def write_voc(root: Path, year: str, names: dict[str, list[str]]) -> None:
    """Two objects a photograph, one of them difficult."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, numbers in names.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(numbers))
        for number in numbers:
            scene((5, 6, 25, 20)).image.save(folder / "JPEGImages" / f"{number}.jpg", quality=95)
            objects = "".join(
                f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>6</xmin>"
                "<ymin>7</ymin><xmax>25</xmax><ymax>20</ymax></bndbox></object>"
                for name, hard in (("aeroplane", 0), ("tvmonitor", 1), ("tvmonitor", 0))
            )
            (folder / "Annotations" / f"{number}.xml").write_text(
                "<annotation><size><width>64</width><height>48</height></size>"
                f"{objects}</annotation>"
            )
