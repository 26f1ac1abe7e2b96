"""A small synthetic camera-trap data set, in the exact on-disk format of WILDS iWildCam 2.0."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from plasticity_cl.errors import UserError
from plasticity_cl.seeding import derive_seed
from plasticity_cl.writing import replacing

HEIGHT, WIDTH = 96, 128
_START, _DAYS = datetime(2013, 1, 1), 730
_Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Species:
    """How an animal is drawn; lengths in units of its body's height.

    Attributes:
        name: Its name in ``categories.csv``.
        length: Of the body.
        legs: Of the legs; none where 0.
        neck: Of the neck, upwards.
        tail: Of the tail; raised where negative.
        ears: Whether the head has two.
        stripes: How many stripes the body has.
        wings: Whether it has a pair of wings and no legs.
        colour: By day.
    """

    name: str
    length: float
    legs: float
    neck: float
    tail: float
    ears: bool
    stripes: int
    wings: bool
    colour: _Colour


# The common ones first: each is drawn half as often, or a little more, as the one before it.
_SPECIES = (
    _Species("deer", 1.7, 1.1, 0.9, 0.2, True, 0, False, (150, 105, 65)),
    _Species("wild pig", 1.9, 0.4, 0.0, 0.4, True, 0, False, (70, 60, 55)),
    _Species("zebra", 1.8, 0.9, 0.6, 0.6, True, 5, False, (215, 215, 210)),
    _Species("bird", 1.3, 0.0, 0.3, 0.6, False, 0, True, (60, 75, 130)),
    _Species("ocelot", 2.2, 0.6, 0.1, -1.5, True, 3, False, (190, 150, 85)),
    _Species("giraffe", 1.2, 1.6, 2.0, 0.5, False, 2, False, (200, 160, 90)),
    _Species("armadillo", 1.4, 0.2, 0.0, 0.9, False, 4, False, (135, 120, 110)),
)
_EMPTY = "empty"


def write_camera_traps(
    root: Path,
    seed: int = 0,
    *,
    locations: tuple[int, int, int] = (10, 2, 3),
    sequences: int = 36,
) -> Path:
    """Write the data set below a folder; one that is there already is kept.

    Each camera has a background and animals of its own. Pictures come in bursts of one to five of the same animal, by
    day in colour and by night in grey, over two years in which the green goes and comes again. Classes are long-tailed:
    a third of the bursts are empty, and each animal is rarer than the one before it. On a tenth of the days of a
    training location its pictures are ``id_val``, on two tenths ``id_test``; ``val`` and ``test`` have locations of
    their own.

    Args:
        root: Where ``iwildcam_v2.0`` is written.
        seed: Root of all draws.
        locations: How many training, validation and test locations.
        sequences: Bursts at each location.

    Returns:
        ``root``.

    Raises:
        UserError: If there is no location of some kind or no burst, or the disk refuses.
    """
    if min(*locations, sequences) < 1:
        raise UserError(f"locations {locations} and sequences {sequences} must be at least 1 each")
    folder = root / "iwildcam_v2.0"
    if folder.exists():
        return root
    try:
        with replacing(folder) as partial:
            (partial / "train").mkdir(parents=True)
            _write(partial, np.random.default_rng(derive_seed(seed, "camera-traps")), locations, sequences)
    except OSError as error:
        raise UserError(f"cannot write camera traps to {root}: {error.strerror or error}") from error
    return root


def _write(folder: Path, draws: np.random.Generator, locations: tuple[int, int, int], sequences: int) -> None:
    splits = [split for split, n in zip(("train", "val", "test"), locations, strict=True) for _ in range(n)]
    names = (_EMPTY, *(species.name for species in _SPECIES))
    rarity = 0.62 ** np.arange(len(_SPECIES))
    rows: list[tuple[object, ...]] = []
    sequence = 0
    for location, split in enumerate(splits):
        background = _background(draws)
        # A few animals make up most of what one camera sees.
        mix = rarity * draws.gamma(0.35, size=len(rarity))
        mix *= (2 / 3) / mix.sum()
        begins, works = sorted(draws.uniform(0, _DAYS - 200, size=2))[0], draws.uniform(200, _DAYS * 0.6)
        for number in range(sequences):
            day = begins + min(works, _DAYS - begins) * draws.random()
            start = _START + timedelta(days=float(day), seconds=int(draws.integers(86_400)))
            label = int(draws.choice(len(names), p=[1 / 3, *mix]))
            if split == "train" and number == 0 and location < len(names):
                label = location  # so that every class occurs
            of_day = split
            if split == "train" and number > 0:
                of_day = ("id_val", "id_test", "id_test", *["train"] * 7)[start.toordinal() * 7 % 10]
            animal = _Animal(_SPECIES[label - 1], draws) if label else None
            for shot in range(int(draws.integers(1, 6))):
                taken = start + timedelta(seconds=2 * shot)
                identity = f"{draws.integers(2**32):08x}-21bc-11ea-a13a-{draws.integers(2**48):012x}"
                picture = _picture(background, animal, shot, taken, draws)
                picture.save(folder / "train" / f"{identity}.jpg", quality=90)
                date = f"{taken:%Y-%m-%d %H:%M:%S}.{draws.integers(1000):03d}"
                burst = f"{sequence:08x}-21bc-11ea-a13a-137349068a90"
                place = (location, 100 + 7 * location, sequence, burst)
                rows.append((of_day, *place, label, 10 * label, date, f"{identity}.jpg", identity))
            sequence += 1
    header = ("split", "location_remapped", "location", "sequence_remapped", "seq_id", "y", "category_id", "datetime")
    _write_table(
        folder / "metadata.csv", ("", *header, "filename", "image_id"), [(i, *row) for i, row in enumerate(rows)]
    )
    categories = [(label, 10 * label, name) for label, name in enumerate(names)]
    _write_table(folder / "categories.csv", ("y", "category_id", "name"), categories)
    (folder / "RELEASE_v2.0.txt").write_text(
        "Synthetic camera traps in the format of iWildCam v2.0\n", encoding="utf-8"
    )


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _background(draws: np.random.Generator) -> Image.Image:
    """What a camera sees when nothing is there: sky, ground, trunks and bushes."""
    image = Image.new("RGB", (WIDTH, HEIGHT), _colour(draws, (150, 175, 195), 35))
    canvas = ImageDraw.Draw(image)
    horizon = int(draws.uniform(0.2, 0.6) * HEIGHT)
    canvas.rectangle((0, horizon, WIDTH, HEIGHT), fill=_colour(draws, (100, 120, 60), 35))
    for _ in range(draws.integers(2, 7)):
        x, thick = draws.uniform(0, WIDTH), draws.uniform(3, 14)
        foot = draws.uniform(horizon, HEIGHT)
        canvas.rectangle((x, 0, x + thick, foot), fill=_colour(draws, (85, 65, 45), 25))
    for _ in range(draws.integers(3, 9)):
        x, y, r = draws.uniform(0, WIDTH), draws.uniform(horizon, HEIGHT), draws.uniform(5, 18)
        canvas.ellipse((x - r, y - 0.7 * r, x + r, y + 0.7 * r), fill=_colour(draws, (60, 100, 45), 30))
    return image


def _colour(draws: np.random.Generator, mean: _Colour, spread: int) -> _Colour:
    red, green, blue = (int(np.clip(c + draws.uniform(-spread, spread), 0, 255)) for c in mean)
    return red, green, blue


class _Animal:
    """One animal that crosses the picture during a burst."""

    def __init__(self, species: _Species, draws: np.random.Generator) -> None:
        self.species = species
        self.x, self.y = draws.uniform(0.25, 0.75) * WIDTH, draws.uniform(0.45, 0.8) * HEIGHT
        self.size = draws.uniform(11, 19)
        self.step = draws.uniform(-6, 6)
        self.colour = _colour(draws, species.colour, 25)

    def draw(self, canvas: ImageDraw.ImageDraw, shot: int) -> None:
        """Draw it as it stands at a shot of the burst; it looks to where it goes."""
        kind, unit = self.species, self.size
        towards = 1 if self.step >= 0 else -1
        x, y = self.x + shot * self.step, self.y
        half, dark = unit * kind.length / 2, tuple(int(0.45 * c) for c in self.colour)

        def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
            return min(left, right), top, max(left, right), bottom

        thin = max(2, round(unit / 6))
        if kind.legs:
            for place in (-0.8, -0.5, 0.5, 0.8):
                foot = y + unit * (0.4 + kind.legs)
                canvas.line((x + place * half, y, x + place * half, foot), fill=dark, width=thin)
        tail_x = x - towards * half
        tail = (tail_x, y - unit * 0.2, tail_x - towards * unit * abs(kind.tail), y + unit * kind.tail * 0.7)
        canvas.line(tail, fill=self.colour, width=thin)
        head_x, head_y = x + towards * (half + unit * 0.2), y - unit * (0.3 + kind.neck)
        canvas.line((x + towards * half * 0.7, y, head_x, head_y), fill=self.colour, width=2 * thin)
        canvas.ellipse((x - half, y - unit / 2, x + half, y + unit / 2), fill=self.colour)
        for stripe in range(kind.stripes):
            at = x + half * 0.7 * (2 * (stripe + 0.5) / kind.stripes - 1)
            canvas.line((at, y - unit * 0.4, at, y + unit * 0.4), fill=dark, width=thin)
        if kind.wings:
            for up in (-1.3, 0.9):
                canvas.polygon(
                    [(x - half * 0.4, y), (x + half * 0.4, y), (x - towards * half, y + up * unit)], fill=dark
                )
        radius = unit * 0.32
        canvas.ellipse((head_x - radius, head_y - radius, head_x + radius, head_y + radius), fill=self.colour)
        if kind.ears:
            for side in (-0.6, 0.6):
                ear = head_x + side * radius
                canvas.polygon([(ear - 2, head_y), (ear + 2, head_y), (ear, head_y - 2.2 * radius)], fill=dark)
        canvas.rectangle(box(head_x, head_y - 1, head_x + towards, head_y), fill=(10, 10, 10))


def _picture(
    background: Image.Image, animal: _Animal | None, shot: int, taken: datetime, draws: np.random.Generator
) -> Image.Image:
    scene = background.copy()
    if animal is not None:
        animal.draw(ImageDraw.Draw(scene), shot)
    pixels = np.asarray(scene, dtype=np.float64)
    hour = taken.hour + taken.minute / 60
    if 6 <= hour < 18:
        # The green goes in the dry season and comes again.
        dry = 0.5 - 0.5 * np.cos(2 * np.pi * taken.timetuple().tm_yday / 365)
        light = 0.65 + 0.4 * np.sin(np.pi * (hour - 6) / 12)
        pixels = pixels * light * np.array([1 + 0.2 * dry, 1 - 0.12 * dry, 1 - 0.15 * dry])
    else:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2) * _FLASH
    pixels = pixels + draws.normal(0, 6, size=(HEIGHT, WIDTH, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _flash() -> npt.NDArray[np.float64]:
    """How an infrared flash lights the scene: the middle more than the corners."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    lit: npt.NDArray[np.float64] = 0.25 + 0.6 * np.exp(-(x**2 + y**2))
    return lit[:, :, None]


_FLASH = _flash()
