"""What iWildCam as a stream costs: images decoded and read a second, and the metadata of the whole data set.

    python scripts/benchmark_iwildcam.py          a minute; writes its own data to a temporary folder

Images are of the published size, 597 x 448 pixels and about 60 KB; the metadata has as many rows, locations and classes
as the published one. One thread decodes, one thread reads.
"""

import argparse
import io
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from plasticity_cl.errors import UserError
from plasticity_cl.scenarios.iwildcam import IWildCam
from plasticity_cl.scenarios.iwildcam.images import ImageFiles, open_cache
from plasticity_cl.scenarios.iwildcam.layout import FOLDER
from plasticity_cl.training import SamplesLoader

ROWS, CLASSES = 203_029, 182
LOCATIONS = {"train": 243, "val": 32, "test": 48}
HEIGHT, WIDTH, SIDE, BATCH = 448, 597, 96, 64


def main() -> None:
    """Measure, and say what was hoped for beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="images to decode")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of metadata")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        small, whole, cache = Path(folder) / "small", Path(folder) / "whole", Path(folder) / "cache"
        names = write_metadata(small, options.images)
        write_images(small, names)
        files = ImageFiles(small / FOLDER / "train", names, (SIDE, SIDE))
        start, used = time.perf_counter(), time.process_time()
        open_cache(files, cache / "one core", workers=1)
        elapsed, used = time.perf_counter() - start, time.process_time() - used
        say(f"cache at {SIDE} x {SIDE}, one core", options.images / elapsed, "images/s", "at least 800")
        say("  by processor time", options.images / used, "images/s", "")

        experience = IWildCam(small, "time", n_experiences=1, size=SIDE, cache=cache).train_stream[0]
        loader = SamplesLoader(experience.samples, BATCH, shuffle=True)
        rates = [len(experience.dataset) / timed(lambda: [None for _ in loader])[0] for _ in range(5)]
        say(f"read from the cache, batches of {BATCH}", max(rates), "images/s", "at least 20,000")

        write_metadata(whole, options.rows)
        # In a process of its own, whose memory holds nothing yet that could be used again.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as another:
            elapsed, used, memory = another.submit(build, small, whole).result()
        say(f"stream of 243 locations from {options.rows:,} rows", elapsed, "s", "under 6")
        say("  by processor time", used, "s", "")
        say("  memory beyond the imports", memory, "MB", "less than 300")


def build(small: Path, whole: Path) -> tuple[float, float, float]:
    """Make the stream of the whole data set, after the imports: seconds by clock and by processor, and megabytes."""
    IWildCam(small, cache=False)
    before = peak_mb()
    elapsed, used = timed(lambda: IWildCam(whole, cache=False))
    return elapsed, used, peak_mb() - before


def timed(do: object) -> tuple[float, float]:
    """How long a call takes, by the clock and by the processor."""
    start, used = time.perf_counter(), time.process_time()
    do()  # type: ignore[operator]
    return time.perf_counter() - start, time.process_time() - used


def peak_mb() -> float:
    """The largest memory of this process so far; not from getrusage, where a process inherits its parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def say(what: str, value: float, unit: str, wanted: str) -> None:
    """Print one line."""
    print(f"{what:<50}{value:>10.1f} {unit:<9}{f' ({wanted})' if wanted else ''}", flush=True)


def write_metadata(root: Path, n_rows: int) -> list[str]:
    """Random rows in the published format; as many locations, and at most as many classes, as published."""
    draws = np.random.default_rng(0)
    (root / FOLDER / "train").mkdir(parents=True)
    (root / FOLDER / "RELEASE_v2.0.txt").write_text("")
    n_locations = sum(LOCATIONS.values())
    location = np.concatenate([np.arange(n_locations), draws.integers(n_locations, size=n_rows - n_locations)])
    label = np.minimum(draws.geometric(0.05, n_rows) - 1, CLASSES - 1)
    label[:CLASSES] = np.arange(CLASSES)
    sequence = np.unique(np.sort(draws.integers(n_rows // 3, size=n_rows)), return_inverse=True)[1]
    inside = draws.choice(["train", "id_val", "id_test"], p=[0.9, 0.05, 0.05], size=n_rows)
    inside[:n_locations] = "train"
    train, val, _ = LOCATIONS.values()
    split = np.where(location < train, inside, np.where(location < train + val, "val", "test"))
    taken = pd.to_datetime(draws.integers(1_370_000_000, 1_430_000_000, n_rows), unit="s")
    identity = [f"{i:08x}-21bc-11ea-a13a-137349068a90" for i in range(n_rows)]
    names = [f"{i}.jpg" for i in identity]
    columns = {
        "split": split,
        "location_remapped": location,
        "location": location + 3,
        "sequence_remapped": sequence,
        "seq_id": identity,
        "y": label,
        "category_id": label + 1,
        "datetime": taken.strftime("%Y-%m-%d %H:%M:%S.000"),
        "filename": names,
        "image_id": identity,
    }
    pd.DataFrame(columns).to_csv(root / FOLDER / "metadata.csv")
    classes = np.arange(CLASSES)
    categories = pd.DataFrame({"y": classes, "category_id": classes + 1, "name": [f"animal {c}" for c in classes]})
    categories.to_csv(root / FOLDER / "categories.csv", index=False)
    return names


def write_images(root: Path, names: list[str]) -> None:
    """Pictures with detail at every scale, as leaves and fur have it: fifty of them, each under many names."""
    draws = np.random.default_rng(0)
    encoded = []
    for _ in range(50):
        picture = np.zeros((HEIGHT, WIDTH, 3))
        for cells in (4, 16, 64, 128):
            rough = Image.fromarray(draws.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += np.asarray(rough.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / 4
        buffer = io.BytesIO()
        Image.fromarray(np.clip(picture + draws.normal(0, 5, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8)).save(
            buffer, "JPEG", quality=80
        )
        encoded.append(buffer.getvalue())
    for i, name in enumerate(names):
        (root / FOLDER / "train" / name).write_bytes(encoded[i % len(encoded)])
    print(f"{len(names)} images of {sum(map(len, encoded)) / len(encoded) / 1000:.0f} KB", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmark_iwildcam: {error}", file=sys.stderr)
        sys.exit(2)
