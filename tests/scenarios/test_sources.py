"""Data sources: bundled and generated sets, and tiny files in the published formats, read by torchvision's readers."""

import dataclasses
import gzip
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from published_writer import PUBLISHED, Arrays, idx, md5, publish, write_emnist
from torchvision import datasets

from plasticity_cl.errors import UserError
from plasticity_cl.images import to_float
from plasticity_cl.scenarios.catalogue import SOURCES
from plasticity_cl.scenarios.files import DATA_VARIABLE, FILES
from plasticity_cl.scenarios.sources import Source, load_source, published


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to reach the network an error."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def assert_holds(source: Source, data: Arrays) -> None:
    for split, (images, labels) in data.items():
        read = getattr(source, f"{split}_inputs")
        assert read.dtype == torch.uint8
        assert read.is_contiguous()
        assert torch.equal(read, torch.from_numpy(images))
        assert torch.equal(getattr(source, f"{split}_labels"), torch.from_numpy(labels))


# Reading


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read_to_the_pixel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    data = publish(monkeypatch, name, tmp_path)
    source = load_source(name, data_root=tmp_path)
    assert_holds(source, data)
    assert source.name == name
    assert source.input_shape == data["train"][0].shape[1:]
    assert len(source.mean) == len(source.std) == source.input_shape[0]
    assert source.n_classes == max(int(labels.max()) for _, labels in data.values()) + 1


def test_emnist_letters_stand_upright(tmp_path: Path) -> None:
    upright = np.zeros((1, 1, 28, 28), dtype=np.uint8)
    upright[0, 0, 3:25, 5] = 255  # the letter L: a stroke down, then one to the right at its foot
    upright[0, 0, 24, 5:20] = 255
    label = np.array([21])
    write_emnist(tmp_path / "EMNIST" / "raw", {"train": (upright, label), "test": (upright, label)})
    on_disk = datasets.EMNIST(tmp_path, split="balanced").data
    assert on_disk[0, 5, 24] == 255
    assert on_disk[0, 24, 19] == 0
    letter = load_source("emnist", data_root=tmp_path).train_inputs[0, 0]
    assert letter[24, 19] == 255
    assert letter[5, 24] == 0


def test_svhn_label_ten_is_the_digit_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish(monkeypatch, "svhn", tmp_path)
    assert scipy.io.loadmat(tmp_path / "train_32x32.mat")["y"][0, 0] == 10
    assert load_source("svhn", data_root=tmp_path).train_labels[0] == 0


def test_a_data_root_may_be_a_string_or_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = publish(monkeypatch, "mnist", tmp_path / "named")
    assert_holds(load_source("mnist", data_root=str(tmp_path / "named")), data)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "named"))
    assert_holds(load_source("mnist"), data)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(DATA_VARIABLE)
    assert_holds(load_source("mnist", data_root="~/named"), data)
    with pytest.raises(UserError, match=r"mnist.* is not in .*/\.cache/plasticity-cl"):
        load_source("mnist")


# Downloading: the archives lie where torchvision would put them, so that it has nothing left to fetch but all to unpack


def test_download_unpacks_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = publish(monkeypatch, "mnist", tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    resources = []
    for archive, _ in datasets.MNIST.resources:
        plain = raw / archive.removesuffix(".gz")
        (raw / archive).write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        resources.append((archive, md5(raw / archive)))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    with pytest.raises(UserError, match=r"no MNIST/raw/train-images-idx3-ubyte there"):
        load_source("mnist", data_root=tmp_path)
    assert_holds(load_source("mnist", data_root=tmp_path, download=True), data)


def test_download_unpacks_emnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = publish(monkeypatch, "emnist", tmp_path)
    raw = tmp_path / "EMNIST" / "raw"
    with zipfile.ZipFile(raw / "gzip.zip", "w") as archive:
        for plain in sorted(raw.glob("emnist-*")):
            archive.writestr(f"gzip/{plain.name}.gz", gzip.compress(plain.read_bytes()))
            plain.unlink()
    monkeypatch.setattr(datasets.EMNIST, "md5", md5(raw / "gzip.zip"))
    assert_holds(load_source("emnist", data_root=tmp_path, download=True), data)


@pytest.mark.parametrize(("name", "reader"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_download_unpacks_cifar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, reader: Any) -> None:
    data = publish(monkeypatch, name, tmp_path)
    folder, archive = tmp_path / reader.base_folder, tmp_path / reader.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, reader.base_folder)
    for file in folder.iterdir():
        file.unlink()
    monkeypatch.setattr(reader, "tgz_md5", md5(archive))
    assert_holds(load_source(name, data_root=tmp_path, download=True), data)


@pytest.mark.parametrize("name", PUBLISHED)
def test_download_of_what_is_there_fetches_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    data = publish(monkeypatch, name, tmp_path)
    assert_holds(load_source(name, data_root=tmp_path, download=True), data)


@pytest.mark.parametrize("name", PUBLISHED)
def test_download_without_a_network_is_one_clear_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_source(name, data_root=tmp_path, download=True)
    assert str(caught.value).startswith(f"data set {name!r} could not be fetched into {tmp_path}: ")
    assert "\n" not in str(caught.value)


# Missing and broken files


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_set_says_what_was_looked_for_and_what_to_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_source(name, data_root=tmp_path / "nowhere")
    message = str(caught.value)
    assert name in message
    assert str(tmp_path / "nowhere") in message
    assert "--download" in message
    assert "data_root" in message
    assert "\n" not in message
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("fashion-mnist", "FashionMNIST/raw/t10k-images-idx3-ubyte"),
        ("emnist", "EMNIST/raw/emnist-balanced-test-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_4"),
        ("cifar100", "cifar-100-python/meta"),
        ("svhn", "test_32x32.mat"),
    ],
)
def test_one_missing_file_and_one_broken_file_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, file: str
) -> None:
    publish(monkeypatch, name, tmp_path)
    content = (tmp_path / file).read_bytes()
    for broken in (content[: len(content) // 2], b"", b"<html>not found</html>"):
        (tmp_path / file).write_bytes(broken)
        with pytest.raises(UserError) as caught:
            load_source(name, data_root=tmp_path)
        message = str(caught.value)
        assert message.startswith(f"data set {name!r} in {tmp_path} is broken: ")
        assert file in message
        assert "--download" in message
        assert "\n" not in message
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=f"data set '{name}' is not in .*: no {file} there"):
        load_source(name, data_root=tmp_path)


def test_a_changed_file_that_cannot_be_fetched_again_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(monkeypatch, "cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"")
    with pytest.raises(UserError, match="'cifar10' could not be fetched into"):
        load_source("cifar10", data_root=tmp_path, download=True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.arange(5), "need a label each"), (np.array([0, 1, 2, 3, 4, 10]), r"must be int64 in 0 \.\. 9")],
)
def test_labels_that_do_not_fit_their_images_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    publish(monkeypatch, "mnist", tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(UserError, match=f"'mnist' in .* is broken: .*t10k-labels-idx1-ubyte: .*{message}"):
        load_source("mnist", data_root=tmp_path)


def test_an_unknown_source_gets_close_names() -> None:
    with pytest.raises(UserError, match="unknown source 'cifar-10'; did you mean cifar10"):
        load_source("cifar-10")


# Sets that need no files


def test_digits_are_the_bundled_images_each_once() -> None:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    source = load_source("digits")
    assert source.train_inputs.shape == (1437, 1, 8, 8)
    assert source.test_inputs.shape == (360, 1, 8, 8)
    assert source.n_classes == 10
    inputs = torch.cat([source.train_inputs, source.test_inputs])
    # Undo the standardisation: the darkest pixel is 0, the brightest 16.
    restored = (16 * (inputs - inputs.min()) / (inputs.max() - inputs.min())).round().flatten(1).numpy()
    labels = torch.cat([source.train_labels, source.test_labels]).numpy()
    rows = np.column_stack([restored, labels])
    expected = np.column_stack([bundled.data, bundled.target])
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_a_nearest_neighbour_reads_the_test_digits() -> None:
    source = load_source("digits")
    nearest = torch.cdist(source.test_inputs.flatten(1), source.train_inputs.flatten(1)).argmin(dim=1)
    assert (source.train_labels[nearest] == source.test_labels).float().mean() > 0.97


def test_synthetic_clusters_can_be_told_apart_and_overlap() -> None:
    source = load_source("synthetic")
    assert source.train_inputs.shape == (2000, 1, 8, 8)
    assert source.test_inputs.shape == (500, 1, 8, 8)
    centres = torch.stack([source.train_inputs[source.train_labels == k].mean(0).flatten() for k in range(10)])
    nearest = torch.cdist(source.test_inputs.flatten(1), centres).argmin(dim=1)
    assert 0.9 < (nearest == source.test_labels).float().mean() < 0.999


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_small_sets_are_standardised_steady_and_balanced(name: str) -> None:
    source = load_source(name)
    assert source.train_inputs.dtype == torch.float32
    assert source.mean == source.std == ()
    assert abs(source.train_inputs.double().mean().item()) < 1e-6
    assert abs(source.train_inputs.double().std(correction=0).item() - 1) < 1e-6
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = load_source(name, download=True)
    assert torch.equal(torch.get_rng_state(), state)
    for field in ("train_inputs", "train_labels", "test_inputs", "test_labels"):
        assert torch.equal(getattr(source, field), getattr(again, field))
    for n in (10, 64, 512, 1000):
        counts = source.train_labels[:n].bincount(minlength=10)
        assert counts.max() - counts.min() <= 1
    assert source.test_labels.bincount(minlength=10).unique().numel() == 1
    assert not torch.equal(source.train_labels[:10], source.train_labels[10:20])


DIGITS_LABELS = [3, 1, 0, 7, 5, 9, 8, 2, 4, 6]
DIGITS_ROW = [-0.8109599, -0.8109599, -0.8109599, 1.0181354, 1.8495424, 0.0204471, -0.8109599, -0.8109599]
SYNTHETIC_LABELS = [0, 8, 3, 5, 7, 2, 6, 9, 4, 1]
SYNTHETIC_ROW = [0.6736128, -0.3634125, 0.3058582, -0.2544165, -0.9743577, 0.6431428, -1.7149518, 1.147933]


def test_small_sets_are_the_same_on_any_machine() -> None:
    """The first labels and pixels, written down once."""
    digits, synthetic = load_source("digits"), load_source("synthetic")
    assert digits.train_labels[:10].tolist() == DIGITS_LABELS
    assert digits.train_inputs[0, 0, 3].tolist() == pytest.approx(DIGITS_ROW, abs=1e-6)
    assert synthetic.train_labels[:10].tolist() == SYNTHETIC_LABELS
    assert synthetic.train_inputs[0, 0, 3].tolist() == pytest.approx(SYNTHETIC_ROW, abs=1e-6)


def test_every_name_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in PUBLISHED:
        publish(monkeypatch, name, tmp_path)
    ready = [name for name in SOURCES if SOURCES.signature(name).gives == "Source" and not SOURCES.options(name)]
    assert set(ready) == {"digits", "synthetic", *PUBLISHED}
    for name in ready:
        source = load_source(name, data_root=tmp_path)
        batch = to_float(source.test_inputs[:4], source.mean, source.std)
        assert batch.dtype == torch.float32
        assert batch.shape == (4, *source.input_shape)


# Conversion


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=4, max_side=5)),
    st.data(),
)
def test_to_float_follows_its_formula(images: np.ndarray, data: st.DataObject) -> None:
    channels = images.shape[-3]
    constants = st.lists(st.floats(0.05, 1.0), min_size=channels, max_size=channels).map(tuple)
    mean, std = data.draw(constants), data.draw(constants)
    before = images.copy()
    expected = (images / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    converted = to_float(torch.from_numpy(images), mean, std)
    assert converted.dtype == torch.float32
    np.testing.assert_allclose(converted.numpy(), expected, rtol=1e-6, atol=1e-5)
    assert np.array_equal(images, before)


def test_to_float_passes_floats_through_and_refuses_the_rest() -> None:
    floats = torch.rand(2, 1, 8, 8, dtype=torch.float32)
    assert to_float(floats, (), ()) is floats
    with pytest.raises(UserError, match=r"uint8 or floating point, got torch\.int64"):
        to_float(torch.zeros(2, 1, 8, 8, dtype=torch.int64), (0.5,), (0.5,))
    with pytest.raises(UserError, match=r"\[2, 3, 8, 8\], 1 means and 1 stds"):
        to_float(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), (0.5,), (0.5,))


# A source of one's own


def test_a_source_refuses_parts_that_do_not_fit() -> None:
    digits = load_source("digits")
    for change, message in (
        ({"train_inputs": digits.train_inputs.flatten(1)}, r"train images of 'digits' must be \[n, C, H, W\]"),
        ({"test_inputs": digits.test_inputs[..., :7]}, r"test images of 'digits' must be"),
        ({"test_labels": digits.test_labels[:-1]}, r"images \[360, 1, 8, 8\] and labels \[359\]"),
        ({"train_labels": digits.train_labels.float()}, "train labels of 'digits' must be int64"),
        ({"n_classes": 9}, r"int64 in 0 \.\. 8"),
        ({"train_inputs": digits.train_inputs.to(torch.uint8)}, "need a mean and a std per channel"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(digits, **change)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_files_that_are_looked_for_are_those_that_torchvision_reads(name: str) -> None:
    reader = published._PUBLISHED[name].reader
    assert set(FILES[name]) == {*published._files(reader, "train"), *published._files(reader, "test")}
