"""Writes a data set in the published format of WILDS iWildCam 2.0, from random tables: made for tests alone."""

import csv
import datetime
import random
from pathlib import Path

import numpy as np
from PIL import Image

LOCATIONS = {"train": 7, "val": 2, "test": 3}


def write_iwildcam(root: Path, *, seed: int = 0, n_sequences: int = 90, side: int = 40) -> list[dict[str, str]]:
    """Write bursts of noisy images at random locations and times.

    Locations, labels and sequences are numbered in the order of first appearance. One training location has neither
    validation nor test images; some files are grey, some have a palette or an alpha channel.

    Returns:
        The rows of metadata.csv.
    """
    draw = random.Random(seed)
    folder = root / "iwildcam_v2.0"
    (folder / "train").mkdir(parents=True)
    (folder / "RELEASE_v2.0.txt").write_text("")
    places = [(split, f"{split}-{i}") for split, count in LOCATIONS.items() for i in range(count)]
    classes = [("empty", 0), ("cephalophus nigrifrons", 317), ("aves", 101), ("panthera onca", 8), ("sus scrofa", 55)]
    locations: dict[str, int] = {}
    labels: dict[str, int] = {}
    rows: list[dict[str, str]] = []
    for number in range(n_sequences):
        split, place = places[number] if number < len(places) else draw.choice(places)
        if split == "train" and place != "train-3":
            split = draw.choice(["train", "train", "train", "id_val", "id_test"]) if number >= len(places) else "train"
        start = datetime.datetime(2013, 1, 1) + datetime.timedelta(minutes=draw.randrange(2 * 365 * 24 * 60))
        for shot in range(draw.randint(1, 6)):
            name, category = draw.choices(classes, [50, 20, 10, 5, 2])[0] if number >= 5 else classes[number]
            label = labels.setdefault(name, len(labels))
            identity = f"{draw.getrandbits(64):016x}-21bc-11ea"
            taken = start + datetime.timedelta(seconds=shot)
            rows.append(
                {
                    "split": split,
                    "location_remapped": str(locations.setdefault(place, len(locations))),
                    "location": str(500 - len(place) - locations[place]),
                    "sequence_remapped": str(number),
                    "seq_id": f"seq-{number}",
                    "y": str(label),
                    "category_id": str(category),
                    "datetime": taken.strftime("%Y-%m-%d %H:%M:%S.") + f"{draw.randrange(1000):03d}",
                    "filename": f"{identity}.jpg",
                    "image_id": identity,
                }
            )
    draw.shuffle(rows)
    write_metadata(folder, rows)
    with (folder / "categories.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["y", "category_id", "name"])
        writer.writerows([y, dict(classes)[name], name] for name, y in labels.items())
    pixels = np.random.default_rng(seed)
    kinds = [("L", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG")]
    for row in rows:
        noise = Image.fromarray(pixels.integers(0, 256, (side, side + 8, 3), dtype=np.uint8))
        mode, kind = kinds.pop() if kinds and row["split"] == "train" else ("RGB", "JPEG")
        noise.convert(mode).save(folder / "train" / row["filename"], kind)
    return rows


def write_metadata(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write metadata.csv with its unnamed index."""
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", *rows[0]])
        writer.writerows([i, *row.values()] for i, row in enumerate(rows))
