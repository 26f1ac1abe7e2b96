"""iWildCam: what each experience holds, when images are decoded, the cache, and an answer to every mistake."""

import collections
import csv
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import resource
import runpy
import shutil
import sys
import time
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from wilds_writer import write_iwildcam, write_metadata

from plasticity_cl.errors import UserError
from plasticity_cl.experiments.build import open_recipe
from plasticity_cl.experiments.compare import compare
from plasticity_cl.experiments.directory import run_directory
from plasticity_cl.experiments.spec import Machine, RunSpec, check
from plasticity_cl.report import write_report
from plasticity_cl.scenarios import IWildCam
from plasticity_cl.scenarios.iwildcam.camera_traps import write_camera_traps
from plasticity_cl.scenarios.iwildcam.groups import Rows, by_cluster, by_location, by_time, cut, leave_out_small
from plasticity_cl.scenarios.iwildcam.images import ImageFiles, UnreadableImageError, open_cache
from plasticity_cl.strategies import Finetune

FOLDER = "iwildcam_v2.0"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A data set that no test changes, and the rows of its metadata."""
    root = tmp_path_factory.mktemp("published")
    return root, write_iwildcam(root)


@pytest.fixture
def data(tmp_path):
    """A data set to be changed."""
    return tmp_path, write_iwildcam(tmp_path, n_sequences=40)


def stream_rows(scenario, stream):
    return np.concatenate(scenario.rows[stream]).tolist()


CUTS = [
    {"by": "location"},
    {"by": "location", "n_experiences": 3, "order": "random"},
    {"by": "time", "n_experiences": 6},
    {"by": "time", "n_experiences": 4, "order": "random"},
    {"by": "cluster", "n_clusters": 3},
    {"by": "cluster", "n_clusters": 2, "n_experiences": 6, "order": "random"},
]


@pytest.mark.parametrize("options", CUTS, ids=str)
def test_every_row_of_a_split_is_in_one_experience_and_keeps_its_label(published, options):
    root, table = published
    scenario = IWildCam(root, cache=False, **options)
    for stream, split in (("train", "train"), ("test", "id_test"), ("ood", "test")):
        wanted = [i for i, row in enumerate(table) if row["split"] == split]
        assert sorted(stream_rows(scenario, stream)) == wanted
        counts = collections.Counter()
        for experience in scenario.streams[stream]:
            counts.update(experience.dataset.targets)
            held = scenario.rows[stream][experience.current_experience - (stream == "ood") * len(scenario.train_stream)]
            assert list(experience.dataset.targets) == [int(table[i]["y"]) for i in held]
        assert counts == collections.Counter(int(table[i]["y"]) for i in wanted)
    if "n_experiences" in options:
        assert len(scenario.train_stream) == options["n_experiences"]


@pytest.mark.parametrize("options", CUTS, ids=str)
def test_a_burst_is_in_one_experience_and_its_test_images_belong_there(published, options):
    root, table = published
    scenario = IWildCam(root, cache=False, **options)
    experience_of = {}
    for k, rows in enumerate(scenario.rows["train"]):
        assert len(rows)
        for sequence in {table[i]["sequence_remapped"] for i in rows}:
            assert experience_of.setdefault(sequence, k) == k
    places = [{table[i]["location"] for i in rows} for rows in scenario.rows["train"]]
    if options["by"] == "location":
        assert sum(map(len, places)) == len(set().union(*places)) == 7
    if options["by"] != "time":
        for k, rows in enumerate(scenario.rows["test"]):
            assert {table[i]["location"] for i in rows} <= places[k]
    for rows in scenario.rows["ood"]:
        assert len({table[i]["location"] for i in rows}) == 1
    assert len(scenario.ood_stream) == 3


def test_periods_follow_each_other_and_test_images_fall_into_them(published):
    root, table = published
    scenario = IWildCam(root, "time", n_experiences=5, cache=False)
    starts = {}
    for row in table:
        starts[row["sequence_remapped"]] = min(starts.get(row["sequence_remapped"], "9"), row["datetime"][:19])
    spans = [sorted(starts[table[i]["sequence_remapped"]] for i in rows) for rows in scenario.rows["train"]]
    for earlier, later in itertools.pairwise(spans):
        assert earlier[-1] <= later[0]
    for k, rows in enumerate(scenario.rows["test"]):
        for i in rows:
            start = starts[table[i]["sequence_remapped"]]
            assert k == 0 or spans[k][0] <= start
            assert k == 4 or start <= spans[k + 1][0]
    sizes = [len(rows) for rows in scenario.rows["train"]]
    assert max(sizes) - min(sizes) <= 12, "two bursts at most"


def test_locations_come_by_their_first_image(published):
    root, table = published
    scenario = IWildCam(root, cache=False)
    firsts = [min(table[i]["datetime"] for i in rows) for rows in scenario.rows["train"]]
    assert firsts == sorted(firsts)


def test_an_experience_without_test_images_is_passed_over(published):
    root, _ = published
    scenario = IWildCam(root, cache=False)
    empty, *_ = without = [k for k in range(7) if not len(scenario.rows["test"][k])]
    assert len(scenario.test_stream) == len(scenario.train_stream) == 7
    assert [e.current_experience for e in scenario.test_stream] == [k for k in range(7) if k not in without]
    assert list(scenario.test_stream[empty : empty + 1]) == []
    with pytest.raises(UserError, match=f"experience {empty} of the test stream has no images"):
        scenario.test_stream[empty]
    assert [e.current_experience for e in scenario.ood_stream] == [7, 8, 9]
    assert [e.origin_stream.name for e in scenario.ood_stream[1:2]] == ["ood"]


def test_splits_and_classes_can_be_chosen(published):
    root, table = published
    names = {row["y"]: row for row in csv.DictReader((root / FOLDER / "categories.csv").open())}
    chosen = [names["3"]["name"], 1]
    scenario = IWildCam(
        root, train="id_val", test="val", ood="val", classes=chosen, by="time", n_experiences=2, cache=False
    )
    wanted = [i for i, row in enumerate(table) if row["split"] == "id_val" and row["y"] in "13"]
    assert sorted(stream_rows(scenario, "train")) == wanted
    assert (scenario.n_outputs, scenario.classes.tolist()) == (2, [1, 3])
    assert scenario.class_names == [names["1"]["name"], names["3"]["name"]]
    for rows, experience in zip(scenario.rows["train"], scenario.train_stream, strict=True):
        assert list(experience.dataset.targets) == [[1, 3].index(int(table[i]["y"])) for i in rows]
    found = {int(table[i]["y"]) for i in stream_rows(scenario, "ood")}
    assert scenario.classes_in("ood").tolist() == [[1, 3].index(y) for y in sorted(found)]


def test_small_experiences_are_left_out_of_both_streams(published):
    root, _ = published
    everything = IWildCam(root, cache=False)
    sizes = [len(rows) for rows in everything.rows["train"]]
    limit = sorted(sizes)[2]
    scenario = IWildCam(root, cache=False, min_size=limit)
    kept = [k for k, size in enumerate(sizes) if size >= limit]
    assert len(kept) < 7
    tested = IWildCam(root, cache=False, min_test_size=1)
    assert [r.tolist() for r in tested.rows["test"]] == [r.tolist() for r in everything.rows["test"] if len(r)]
    assert len(tested.train_stream) == len(list(tested.test_stream)) < 7
    for stream in ("train", "test"):
        assert [r.tolist() for r in scenario.rows[stream]] == [everything.rows[stream][k].tolist() for k in kept]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.data())
def test_cutting_keeps_order_fills_every_part_and_is_near_the_ideal_border(sizes, data):
    n = data.draw(st.integers(1, len(sizes)))
    part = cut(np.array(sizes), n, "things")
    assert part.tolist() == sorted(part.tolist())
    assert set(part.tolist()) == set(range(n))
    if sum(sizes) and n < len(sizes) and min(sizes) * n >= max(sizes) * 2:
        totals = np.bincount(part, sizes)
        assert totals.max() - totals.min() <= 2 * max(sizes)


@st.composite
def tables(draw):
    """Sequences at random locations and times, some rows of which are trained on."""
    n_sequences = draw(st.integers(2, 25))
    length = draw(st.lists(st.integers(1, 5), min_size=n_sequences, max_size=n_sequences))
    sequence = np.repeat(np.arange(n_sequences), length)
    place = np.array(draw(st.lists(st.integers(0, 5), min_size=n_sequences, max_size=n_sequences)))
    start = np.array(draw(st.lists(st.integers(0, 40), min_size=n_sequences, max_size=n_sequences)))
    shuffle = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(sequence))
    rows = Rows(
        place[sequence][shuffle],
        sequence[shuffle],
        (start[sequence] + np.arange(len(sequence)))[shuffle],
        (place[sequence] % 3)[shuffle],
    )
    train = np.flatnonzero(np.array(draw(st.lists(st.booleans(), min_size=len(sequence), max_size=len(sequence)))))
    return rows, train


@given(tables(), st.integers(1, 6), st.sampled_from(["time", "random"]), st.integers(0, 9))
def test_rows_to_be_trained_on_all_have_an_experience_and_bursts_stay_whole(table, n, order, seed):
    rows, train = table
    if len(np.unique(rows.sequence[train])) >= n:
        number = by_time(rows, train, n, order, seed)
        assert set(number[train].tolist()) == set(range(n))
        assert number.min() >= 0
        for sequence in np.unique(rows.sequence[train]):
            assert len(np.unique(number[rows.sequence == sequence])) == 1
    if len(np.unique(rows.location[train])) >= n:
        number = by_location(rows, train, n, order, seed)
        assert set(number[train].tolist()) == set(range(n))
        for location in np.unique(rows.location):
            assert len(np.unique(number[rows.location == location])) == 1
        test = np.setdiff1d(np.arange(len(number)), train)
        largest = int(np.bincount(number[train]).max())
        smaller = leave_out_small(number, train, test, largest, 0)
        assert set(np.bincount(smaller[train][smaller[train] >= 0]).tolist()) == {largest}


def test_clusters_are_of_locations_with_like_classes():
    location = np.repeat(np.arange(8), 30)
    label = np.where(location % 2 == 0, np.arange(240) % 2, 2 + np.arange(240) % 3)
    rows = Rows(location, np.arange(240), np.arange(240)[::-1].copy(), label)
    number, cluster = by_cluster(rows, np.arange(240), 2, 6, "time", seed=3)
    for i in range(8):
        assert cluster[location == i].tolist() == [cluster[location == i % 2][0]] * 30
    assert (number // 3 == cluster).all()
    for k in range(3):
        assert rows.time[number == k].max() < rows.time[number == k + 1].min() or k == 2
    assert (by_cluster(rows, np.arange(240), 2, 6, "time", seed=3)[0] == number).all()
    with pytest.raises(UserError, match="make 2 different clusters only"):
        by_cluster(rows, np.arange(240), 5, 5, "time", seed=0)


# Images


def naive(model, **options):
    evaluator = EvaluationPlugin(collect_all=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Finetune(model=model, optimizer=optimizer, train_mb_size=8, evaluator=evaluator, **options)


def linear(scenario):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(scenario.input_shape)), scenario.n_outputs))


@pytest.fixture
def opened(monkeypatch):
    """The names of the image files that are opened, as they are opened."""
    names, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: names.append(os.path.basename(path)) or real(path, *rest))
    return names


def test_nothing_is_decoded_before_training_and_each_image_as_often_as_it_was_used(published, opened):
    root, table = published
    scenario = IWildCam(root, "time", n_experiences=3, size=16, cache=False)
    experiences = list(scenario.train_stream)
    assert experiences[0].classes_in_this_experience
    assert opened == []
    naive(linear(scenario), train_epochs=2).train(experiences[1], eval_streams=[])
    used = collections.Counter({table[i]["filename"]: 2 for i in scenario.rows["train"][1]})
    assert collections.Counter(opened) == used


def test_with_a_cache_each_image_is_decoded_once_and_only_when_first_needed(published, opened, tmp_path):
    root, table = published
    scenario = IWildCam(root, "time", n_experiences=3, size=16, cache=tmp_path)
    assert opened == []
    strategy = naive(linear(scenario), train_epochs=3)
    for experience in scenario.train_stream:
        strategy.train(experience, eval_streams=[])
    strategy.eval(scenario.ood_stream)
    assert sorted(opened) == sorted(row["filename"] for row in table)
    again = IWildCam(root, "location", size=16, cache=tmp_path)
    assert again.train_stream[0].samples.batch(torch.arange(3))[0].shape == (3, 3, 16, 16)
    assert len(opened) == len(table)


def test_cache_workers_and_decoding_in_place_train_the_same_network(published, tmp_path):
    root, _ = published
    weights = []
    for cache, workers in ((tmp_path, 0), (False, 0), (False, 2)):
        scenario = IWildCam(root, "time", n_experiences=4, size=(12, 20), cache=cache)
        model = linear(scenario)
        strategy = naive(model)
        torch.manual_seed(1)
        strategy.train(scenario.train_stream[0], eval_streams=[], num_workers=workers)
        weights.append(model[1].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])


def test_images_are_rgb_at_the_size_and_standardised(published):
    root, table = published
    scenario = IWildCam(root, size=(40, 48), cache=False, classes=None)
    modes = set()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for stream in scenario.streams.values():
        for k, experience in zip([k for k, r in enumerate(scenario.rows[stream.name]) if len(r)], stream, strict=True):
            for i, (image, label) in zip(scenario.rows[stream.name][k], experience.dataset, strict=True):
                file = Image.open(root / FOLDER / "train" / table[i]["filename"])
                modes.add(file.mode)
                whole = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
                expected = (whole / 255 - mean[:, None, None]) / std[:, None, None]
                assert torch.allclose(image, expected, atol=1e-5)
                assert int(label) == int(table[i]["y"])
    assert modes == {"RGB", "L", "P", "RGBA", "CMYK"}


def test_scaling_down_averages_over_the_whole_image(tmp_path):
    # A checkerboard of single pixels: anything that skipped pixels would see black or white.
    board = (np.indices((256, 320)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    smooth = np.broadcast_to(np.linspace(0, 255, 640)[None, :, None], (512, 640, 3)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "b.jpg", quality=95)
    files = ImageFiles(tmp_path, ["a.png", "b.jpg"], (32, 40))
    assert abs(files.read(0).astype(int)[:, 1:-1, 1:-1] - 127).max() <= 2
    assert abs(files.read(1)[0, 16].astype(float) - np.linspace(0, 255, 640).reshape(40, 16).mean(1)).max() < 4


def breaks(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("how", ["missing", "truncated", "no image"])
def test_an_unreadable_image_is_named(data, tmp_path, cache, how):
    root, table = data
    row = next(i for i, row in enumerate(table) if row["split"] == "train" and i > 10)
    path = root / FOLDER / "train" / table[row]["filename"]
    {"missing": path.unlink, "truncated": lambda: breaks(path), "no image": lambda: path.write_text("hello")}[how]()
    scenario = IWildCam(root, "time", n_experiences=1, size=16, cache=cache and tmp_path / "cache")
    with pytest.raises(UserError, match=path.name) as caught:
        naive(linear(scenario)).train(scenario.train_stream[0], eval_streams=[])
    assert "\n" not in str(caught.value)


def test_unreadable_images_can_be_skipped_and_are_listed(data, tmp_path):
    root, table = data
    trained = [i for i, row in enumerate(table) if row["split"] == "train"]
    bad = [trained[3], trained[20], len(table) - 1]
    for i in bad:
        breaks(root / FOLDER / "train" / table[i]["filename"])
    scenario = IWildCam(root, "time", n_experiences=2, size=16, cache=tmp_path / "cache", unreadable="skip")
    held = np.concatenate([e.samples.indices for e in scenario.train_stream])
    assert sorted(held) == [i for i in trained if i not in bad]
    assert scenario.skipped == [table[i]["filename"] for i in bad]
    with pytest.raises(UserError, match=f"3 of {len(table)} images could not be read .*{table[bad[0]]['filename']}"):
        _ = IWildCam(root, size=16, cache=tmp_path / "cache").train_stream[0]
    with pytest.raises(UserError, match="unreadable='skip' needs the cache"):
        IWildCam(root, cache=False, unreadable="skip")


def with_size(data, kind, height, width):
    """The bytes of an image file whose header says that it has so many pixels."""
    data = bytearray(data)
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    elif kind == "PNG":
        data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    elif kind == "BMP":
        data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    else:
        data[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return bytes(data)


DAMAGES = {
    "bomb": lambda data, kind: with_size(data, kind, 60000, 60000),
    "bomb that warns": lambda data, kind: with_size(data, kind, 10000, 12000),
    "too large": lambda data, kind: with_size(data, kind, 700, 900),
    "no pixels": lambda data, kind: with_size(data, kind, 0, 0),
    "truncated": lambda data, kind: data[: len(data) // 2],
    "header alone": lambda data, kind: data[:20],
    "empty": lambda data, kind: b"",
    "text": lambda data, kind: b"<html>404</html>",
}


DAMAGED = [(kind, damage) for kind in ("JPEG", "PNG", "BMP") for damage in DAMAGES]
# The size in a GIF's header is that of its screen, where only a bomb does harm.
DAMAGED += [("GIF", "bomb"), ("GIF", "empty")]
# A JPEG that ends early is grey from there on, and no reader says so.
DAMAGED.remove(("JPEG", "too large"))


@pytest.mark.parametrize(("kind", "damage"), DAMAGED)
@pytest.mark.parametrize("warnings_are", ["ignore", "error"])
def test_a_damaged_image_is_unreadable_however_it_is_damaged(tmp_path, damage, kind, warnings_are):
    memory = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(memory, kind)
    (tmp_path / "good").write_bytes(memory.getvalue())
    (tmp_path / "bad").write_bytes(DAMAGES[damage](memory.getvalue(), kind))
    files = ImageFiles(tmp_path, ["good", "bad", "good"], (8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter(warnings_are, Image.DecompressionBombWarning)
        with pytest.raises(UnreadableImageError, match="bad") as caught:
            files.read(1)
        assert "\n" not in str(caught.value)
        images, skipped = open_cache(files, tmp_path / "cache", "skip", workers=2)
    assert skipped.tolist() == [1]
    assert images[0].any()
    assert torch.equal(images[0], images[2])
    assert not images[1].any()


# The cache


def make_images(folder, n):
    folder.mkdir()
    draw = np.random.default_rng(0)
    names = [f"{i}.jpg" for i in range(n)]
    for name in names:
        Image.fromarray(draw.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(folder / name)
    return ImageFiles(folder, names, (24, 32))


def note_in(progress):
    return json.loads(progress.read_text())["done"] if progress.exists() else 0


def test_a_cache_killed_at_any_moment_goes_on_and_ends_with_the_same_bytes(tmp_path):
    files = make_images(tmp_path / "images", 2400)
    whole, _ = open_cache(files, tmp_path / "whole", workers=1)
    assert torch.equal(whole[77], torch.from_numpy(files.read(77)))
    folder, progress = tmp_path / "killed", tmp_path / "killed" / "progress.json"
    context, notes = multiprocessing.get_context("fork"), [0]
    for moment in (0.0, 0.01, 0.03, 0.0):
        process = context.Process(target=open_cache, args=(files, folder), kwargs={"workers": 2})
        process.start()
        # Before the first note at first; later in the making of what follows one.
        while not (folder / "images.u8").exists() or (len(notes) > 1 and note_in(progress) <= notes[-1]):
            time.sleep(0.001)
        time.sleep(moment)
        process.kill()
        process.join()
        notes.append(note_in(progress))
    assert notes == sorted(notes)
    assert 0 < notes[-1] < 2400, "killed in the middle"
    assert not (tmp_path / "killed" / "complete.json").exists()
    resumed, _ = open_cache(files, tmp_path / "killed")
    assert torch.equal(resumed, whole)
    bytes_of = [(tmp_path / name / "images.u8").read_bytes() for name in ("whole", "killed")]
    assert bytes_of[0] == bytes_of[1]
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["complete.json", "images.u8", "lock"]


def test_half_written_bytes_after_the_last_note_are_written_again(tmp_path):
    files = make_images(tmp_path / "images", 700)
    whole, _ = open_cache(files, tmp_path / "whole")
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole", broken)
    (broken / "complete.json").unlink()
    (broken / "progress.json").write_text('{"done": 512, "unreadable": []}')
    with (broken / "images.u8").open("r+b") as file:
        file.truncate(600 * 3 * 24 * 32)
        file.seek(512 * 3 * 24 * 32)
        file.write(b"\xff" * 5000)
    assert torch.equal(open_cache(files, broken)[0], whole)


def test_writing_to_the_images_does_not_reach_the_cache(tmp_path):
    files = make_images(tmp_path / "images", 5)
    images, _ = open_cache(files, tmp_path / "cache")
    before = images.clone()
    images.zero_()
    assert torch.equal(open_cache(files, tmp_path / "cache")[0], before)


def test_processes_that_want_one_cache_at_a_time_make_it_once(tmp_path):
    files = make_images(tmp_path / "images", 300)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=open_cache, args=(files, tmp_path / "cache")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    made = (tmp_path / "cache" / "images.u8").stat().st_mtime_ns
    images, _ = open_cache(files, tmp_path / "cache")
    assert all(torch.equal(images[i], torch.from_numpy(files.read(i))) for i in range(0, 300, 37))
    assert (tmp_path / "cache" / "images.u8").stat().st_mtime_ns == made


def test_an_accelerator_gets_the_images_of_the_experience_alone(published, tmp_path):
    samples = IWildCam(published[0], size=16, cache=tmp_path).train_stream[0].samples
    there = samples.to(torch.device("meta"))
    assert there.inputs.shape == (len(samples), 3, 16, 16)
    assert len(samples) < len(samples.inputs)
    assert there.indices is None
    assert samples.to(torch.device("cpu")) is samples


def test_a_cache_belongs_to_one_data_set_and_one_size(data, tmp_path):
    root, table = data
    folders = []
    for size in (16, (16, 20)):
        _ = IWildCam(root, size=size, cache=tmp_path / "cache").train_stream[0]
        folders.append({p.name for p in (tmp_path / "cache").iterdir()})
    write_metadata(root / FOLDER, table[::-1])
    scenario = IWildCam(root, size=16, cache=tmp_path / "cache")
    k = next(iter(scenario.train_stream)).current_experience
    names = [table[::-1][i]["filename"] for i in scenario.rows["train"][k]]
    files = ImageFiles(root / FOLDER / "train", names, (16, 16))
    images = scenario.train_stream[k].samples
    assert torch.equal(images.inputs[images.indices[0]], torch.from_numpy(files.read(0)))
    assert [len(f) for f in (*folders, set((tmp_path / "cache").iterdir()))] == [1, 2, 3]


def test_a_disk_too_small_or_a_folder_that_cannot_be_written_is_refused_in_one_line(data, tmp_path, monkeypatch):
    root, _ = data
    for cache in ("/proc/no", root / FOLDER / "metadata.csv" / "cache"):
        with pytest.raises(UserError, match="cannot write the image cache .* another folder") as caught:
            _ = IWildCam(root, size=16, cache=cache).train_stream[0]
        assert "\n" not in str(caught.value)
    # A limit on the size of files stands for a disk that gets full while the cache is made.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(UserError, match="cannot write the image cache .*: File too large"):
            _ = IWildCam(root, size=16, cache=tmp_path / "full").train_stream[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs 0\.\d GB more and its disk has 0\.0 GB left"):
        _ = IWildCam(root, size=16, cache=tmp_path / "small").train_stream[0]


# The synthetic data set, and runs


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    """A small synthetic data set where the source camera-traps looks for it."""
    data_root = tmp_path_factory.mktemp("data")
    return write_camera_traps(data_root / "camera-traps-v1", 3, locations=(8, 1, 2), sequences=14), data_root


def test_synthetic_camera_traps_are_in_the_published_format(traps, published, tmp_path):
    root, _ = traps
    table = list(csv.DictReader((root / FOLDER / "metadata.csv").open()))
    ours, theirs = ((folder / FOLDER / "metadata.csv").read_text().splitlines()[0] for folder in (root, published[0]))
    assert ours == theirs
    assert {row["split"] for row in table} == {"train", "val", "test", "id_val", "id_test"}
    places = {
        name: {r["location"] for r in table if r["split"] == name} for name in ("train", "id_test", "val", "test")
    }
    assert places["id_test"] <= places["train"]
    assert not places["train"] & places["val"] | places["train"] & places["test"] | places["val"] & places["test"]
    bursts = collections.defaultdict(list)
    for row in table:
        bursts[row["sequence_remapped"]].append(row)
    for burst in bursts.values():
        assert len({(row["y"], row["location"], row["split"]) for row in burst}) == 1
        assert len(burst) <= 5
    counts = collections.Counter(row["y"] for row in table).most_common()
    assert len(counts) == 8
    assert counts[0][1] > 5 * counts[-1][1], "long-tailed"
    by_night, by_day = (
        [r for r in table if (r["datetime"][11:13] < "06" or r["datetime"][11:13] >= "18") is night][:20]
        for night in (True, False)
    )
    for rows, is_grey in ((by_night, True), (by_day, False)):
        for row in rows:
            pixels = np.array(Image.open(root / FOLDER / "train" / row["filename"])).astype(int)
            assert bool(abs(pixels[..., 0] - pixels[..., 2]).max() <= 8) is is_grey
    same = write_camera_traps(tmp_path, 3, locations=(8, 1, 2), sequences=14)
    for path in sorted((root / FOLDER).rglob("*.*")):
        assert (same / FOLDER / path.relative_to(root / FOLDER)).read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [FOLDER], "nothing half-made is left"
    with pytest.raises(UserError, match="must be at least 1 each"):
        write_camera_traps(tmp_path / "none", sequences=0)
    with pytest.raises(UserError, match="cannot write camera traps"):
        write_camera_traps(tmp_path / FOLDER / "metadata.csv")


SPEC = RunSpec(scenario="iwildcam:size=16", source="camera-traps", epochs=1, model="cnn:width=4", diagnostics="none")


def test_a_run_on_camera_traps_separates_plasticity_from_forgetting(traps, tmp_path):
    spec, machine = check(SPEC), Machine(data_root=str(traps[1]), jobs=1)
    directory = run_directory(tmp_path, spec)
    assert compare([spec], tmp_path, machine) == {directory: "done"}
    rows = list(csv.DictReader((directory / "metrics.csv").open()))
    length = len(open_recipe(spec, machine).scenario.train_stream)
    assert 2 <= length <= 8
    for stream in ("train", "test"):
        for metric in ("plasticity_loss", "forgetting", "total"):
            found = {int(r["experience"]) for r in rows if (r["metric"], r["stream"]) == (metric, stream)}
            assert found == set(range(length))
    for stream in ("test", "ood"):
        for score in ("accuracy", "macro_recall", "macro_f1"):
            (whole,) = [r for r in rows if (r["metric"], r["stream"]) == (f"stream_{score}", stream)]
            assert int(whole["experience"]) == length - 1
            assert 0 <= float(whole["value"]) <= 1
    page = write_report(tmp_path).read_text()
    assert "Other measures on data out of distribution" in page
    assert "stream macro f1" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "digits"}, "iwildcam is not made of digits: its sources are wilds, camera-traps"),
        ({"scenario": "iwildcam:n_samples=5"}, "unknown option of scenario iwildcam 'n_samples'"),
        ({"scenario": "iwildcam:min_test_size=5"}, "unknown option of scenario iwildcam 'min_test_size'"),
        ({"model": "cnn:weights=w.pth"}, "unknown option of network cnn 'weights'"),
        ({"model": "imagenet-resnet18:width=8"}, "unknown option of network imagenet-resnet18 'width'"),
        ({"scenario": "label-reset:by=time", "source": "digits"}, "unknown option of scenario label-reset 'by'"),
    ],
)
def test_specs_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(dataclasses.replace(SPEC, **changes))


def test_the_script_explains_what_is_missing(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "scripts" / "iwildcam.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--data-root", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    for word in ("iwildcam_v2.0", "metadata.csv", "12 GB", "Community Data License Agreement", "--sample"):
        assert word in shown
    assert shown.splitlines()[-1].startswith("iwildcam: no WILDS iWildCam v2.0 in")
    assert list(tmp_path.iterdir()) == []


# Mistakes


def without_column(folder, table, column):
    write_metadata(folder, [{k: v for k, v in row.items() if k != column} for row in table])


def with_value(folder, table, line, column, value):
    write_metadata(folder, [row | {column: value} if i == line - 2 else row for i, row in enumerate(table)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f, t: shutil.rmtree(f), r"no WILDS iWildCam v2\.0 in .*12 GB.*CDLA-Permissive-1\.0"),
        (lambda f, t: f.rename(f.with_name("iwildcam_v1.0")), r"is not there, only iwildcam_v1\.0"),
        (lambda f, t: (f / "RELEASE_v2.0.txt").rename(f / "RELEASE_v1.0.txt"), r"only RELEASE_v1\.0\.txt"),
        (lambda f, t: (f / "metadata.csv").unlink(), r"metadata\.csv is not there"),
        (lambda f, t: (f / "metadata.csv").write_text(""), r"metadata\.csv cannot be read"),
        (lambda f, t: write_metadata(f, [t[0] | {"y": "x"}]), "line 2: y is 'x', no whole number"),
        (lambda f, t: with_value(f, t, 9, "datetime", "2013-13-01 00:00:00.000"), "line 9: datetime is '2013-13-01"),
        (lambda f, t: with_value(f, t, 9, "datetime", ""), "line 9: datetime is ''"),
        (lambda f, t: with_value(f, t, 12, "split", "dev"), "line 12: split is 'dev', none of train, val"),
        (lambda f, t: with_value(f, t, 7, "y", ""), "line 7: y is ''"),
        (lambda f, t: with_value(f, t, 7, "y", "1.5"), "line 7: y is '1.5'"),
        (lambda f, t: with_value(f, t, 7, "location_remapped", "77"), "location_remapped has gaps, 12 is missing"),
        *[
            (lambda f, t, c=column: without_column(f, t, c), f"has no column '{column}'")
            for column in ("split", "location_remapped", "sequence_remapped", "y", "datetime", "filename")
        ],
        (lambda f, t: (f / "categories.csv").unlink(), r"categories\.csv does not give a name"),
    ],
)
def test_damage_is_named_in_one_line(data, damage, message):
    root, table = data
    damage(root / FOLDER, table)
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        IWildCam(root, cache=False)
    assert "\n" not in str(caught.value)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "locations"}, "unknown by 'locations'; did you mean location"),
        ({"order": "tim"}, "did you mean time"),
        ({"train": "id_tets"}, "unknown split 'id_tets'; did you mean id_test"),
        ({"test": "dev"}, "unknown split 'dev'; known: id_test, id_val, test, train, val"),
        ({"classes": ["avse", "empty"]}, "unknown class 'avse'; did you mean aves"),
        ({"classes": [0, 5]}, "unknown class 5: there are 5, from 0"),
        ({"classes": ["aves"]}, "at least 2"),
        ({"unreadable": "ignore"}, "unknown value of unreadable 'ignore'"),
        ({"n_experiences": 8}, "8 parts of 7 locations"),
        ({"n_experiences": 0}, "0 parts of 7 locations"),
        ({"by": "time", "n_experiences": 900}, "900 parts of .* sequences"),
        ({"by": "cluster", "n_clusters": 9}, "there are 7 locations"),
        ({"by": "cluster", "n_clusters": 2, "n_experiences": 5}, "must be a multiple of n_clusters"),
        ({"min_size": 10**6}, "no experience has 1000000 training and 0 test images"),
        ({"min_test_size": 10**6}, "no experience has 0 training and 1000000 test images"),
        ({"size": 0}, "size is 0"),
        ({"size": (4, 4, 3)}, "size is"),
    ],
)
def test_mistakes_are_named(published, options, message):
    with pytest.raises(UserError, match=message):
        IWildCam(published[0], cache=False, **options)


def test_wilds_is_imported_without_its_look_at_the_network(published, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "wilds"]:
        monkeypatch.delitem(sys.modules, name)
    asked = []
    stand_in = types.SimpleNamespace(check_outdated=lambda *names: asked.append(names) or (False, ""))
    monkeypatch.setitem(sys.modules, "outdated", stand_in)
    dataset = IWildCam(published[0], cache=False).dataset
    assert sys.modules["outdated"] is stand_in, "given back"
    assert type(dataset) is sys.modules["wilds.datasets.iwildcam_dataset"].IWildCamDataset
    assert sys.modules["wilds.version"].check_outdated is None
    assert asked == []
