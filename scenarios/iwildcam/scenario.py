"""iWildCam: camera traps in the wild, a stream whose distribution shifts by itself."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from avalanche.benchmarks import CLScenario, DatasetExperience
from avalanche.benchmarks.scenarios.generic_scenario import SequenceCLStream
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from torch import Tensor

from plasticity_cl.errors import UserError, unknown_name
from plasticity_cl.metrics.wilds import WildsMetric
from plasticity_cl.parts import facts
from plasticity_cl.parts.values import Count, Whole
from plasticity_cl.scenarios.files import data_folder
from plasticity_cl.scenarios.iwildcam.groups import (
    NOWHERE,
    Integers,
    Order,
    Rows,
    by_cluster,
    by_location,
    by_time,
    leave_out_small,
    rows_of_each,
)
from plasticity_cl.scenarios.iwildcam.images import DecodedImages, ImageFiles, ImageStore, Unreadable
from plasticity_cl.scenarios.iwildcam.layout import FOLDER, SPLITS, VERSION, check_present
from plasticity_cl.scenarios.iwildcam.sources import CameraTraps
from plasticity_cl.seeding import preserve_rng
from plasticity_cl.training import InMemoryExperience

By = Literal["location", "time", "cluster"]
N_PERIODS = 20
"""Experiences of ``by="time"`` if no number is asked for."""
N_CLUSTERS = 5

_COLUMNS = ("split", "location_remapped", "sequence_remapped", "y", "datetime", "filename")
_DATE = "%Y-%m-%d %H:%M:%S.%f"


class DecodedExperience(DatasetExperience):  # type: ignore[misc]
    """An Avalanche experience over :class:`DecodedImages`."""

    def __init__(self, images: DecodedImages) -> None:
        targets = DataAttribute(images.targets.tolist(), "targets")  # type: ignore[no-untyped-call]
        super().__init__(dataset=AvalancheDataset([images], data_attributes=[targets]))
        self._targets = images.targets

    @property
    def classes_in_this_experience(self) -> list[int]:
        """The classes that occur, in rising order."""
        return self._targets.unique().tolist()  # type: ignore[no-untyped-call, no-any-return]


class WildsStream(SequenceCLStream):  # type: ignore[misc]
    """A lazy stream, of which some experiences may have no images.

    Positions are those of the training stream, so that experience k of the one belongs to experience k of the other.
    Going through the stream, or a slice of it, passes over the experiences without images; asking for one is an error.

    Args:
        name: The stream's name.
        rows: The rows of the metadata that each experience holds, none where it has no images.
        labels: ``[N]`` the class of each row.
        store: Where the images come from.
        first: The number of the experience at position 0.
    """

    def __init__(
        self, name: str, rows: Sequence[Integers], labels: Integers, store: ImageStore, *, first: int = 0
    ) -> None:
        super().__init__(name, benchmark=None, set_stream_info=False)
        self.rows, self._labels, self._store, self._first = rows, labels, store, first

    def __iter__(self) -> Iterator[DatasetExperience]:
        positions = range(len(self.rows)) if self.slice_ids is None else self.slice_ids
        return (self._make_experience(position) for position in positions if len(self.rows[position]))

    def _full_length(self) -> int:
        return len(self.rows)

    def _make_experience(self, experience_idx: int) -> DatasetExperience:
        position = experience_idx + len(self.rows) if experience_idx < 0 else experience_idx
        if not 0 <= position < len(self.rows):
            raise IndexError(f"experience {experience_idx} of a stream of {len(self.rows)}")
        rows = self.rows[position]
        if len(rows) == 0:
            raise UserError(
                f"experience {position} of the {self.name} stream has no images; iterate the stream to pass over it"
            )
        images = self._store.images(rows, self._labels)
        experience = DecodedExperience(images) if isinstance(images, DecodedImages) else InMemoryExperience(images)
        experience.current_experience = self._first + position
        experience.origin_stream = self
        return experience


class WildsScenario(CLScenario):  # type: ignore[misc]
    """What :func:`IWildCam` returns: ``train_stream``, ``test_stream`` and ``ood_stream``, and what is known of them.

    The experiences of ``ood_stream`` are never trained on. They are numbered on from the last of the others, so that a
    metric that pairs the experiences of streams by number pairs none of them.

    Attributes:
        name: The scenario's name, as the command line has it.
        dataset: The data set as the ``wilds`` package has it, with its ``eval``.
        rows: For ``train``, ``test`` and ``ood``, the rows of the metadata that each experience holds.
        labels: ``[N]`` the output of the class of each row; -1 for classes that are left out.
        classes: ``[n_outputs]`` the label in the metadata of each output, rising.
        class_names: The name of each output.
        cluster: ``[K]`` the cluster of each training experience; ``None`` unless cut by cluster.
        input_shape: Shape of one input.
        n_outputs: Classes.
        task: What the targets are.
        exchangeable: Whether all experiences are equally hard, which these are not.
        forgetting_counts: Whether what was learned of an experience still holds at the end: an animal stays what it is.
    """

    task: Literal["classification"] = "classification"
    exchangeable = False
    forgetting_counts = True
    train_stream: WildsStream
    test_stream: WildsStream
    ood_stream: WildsStream

    def __init__(
        self,
        name: str,
        rows: Mapping[str, Sequence[Integers]],
        labels: Integers,
        store: ImageStore,
        *,
        dataset: Any,
        classes: Integers,
        class_names: Sequence[str],
        cluster: Integers | None,
    ) -> None:
        first = {"ood": len(rows["train"])}
        streams = [WildsStream(stream, rows[stream], labels, store, first=first.get(stream, 0)) for stream in rows]
        super().__init__(streams)
        for stream in streams:
            stream.benchmark = self
        self.name, self.rows, self.labels, self.dataset = name, rows, labels, dataset
        self.classes, self.class_names, self.cluster = classes, list(class_names), cluster
        self.input_shape, self.n_outputs = (3, *store.files.size), len(classes)
        self._store = store

    @property
    def skipped(self) -> list[str]:
        """Files that cannot be read and are left out, with ``unreadable="skip"``. Asking makes the cache."""
        return self._store.skipped

    def metrics(self) -> list[WildsMetric]:
        """What a run on this stream reports beside the metrics of every run: the scores of WILDS."""
        return [WildsMetric({name: self.classes_in(name) for name in ("test", "ood")}, self.n_outputs)]

    def classes_in(self, stream: str) -> Tensor:
        """The classes, as outputs, that occur anywhere in a stream; macro averages over it are over these."""
        return torch.from_numpy(np.unique(self.labels[np.concatenate(self.rows[stream])]))


@facts(length=243)
def IWildCam(
    source: CameraTraps | str | Path,
    by: By = "location",
    *,
    n_experiences: Count | None = None,
    n_clusters: Count = N_CLUSTERS,
    min_size: Whole = 0,
    min_test_size: Whole = 0,
    order: Order = "time",
    train: str = "train",
    test: str = "id_test",
    ood: str = "test",
    classes: Sequence[str | int] | None = None,
    size: Count | tuple[int, int] = 96,
    cache: bool | str | Path = True,
    unreadable: Unreadable = "raise",
    seed: int = 0,
) -> WildsScenario:
    """WILDS iWildCam 2.0 (Koh et al. 2021, Beery et al. 2020) as a stream: which animal does a camera trap show?

    Every image of the training split is in one experience, with three exceptions, all asked for: those of classes left
    out by ``classes``, of experiences left out by their size, and unreadable ones that are skipped. The test stream
    is in distribution: experience k holds the images of the split ``test`` at the same locations, or from the same
    time, as training experience k. Where there are none, going through it passes over the experience, see
    :class:`WildsStream`. The stream out of distribution has one experience for each location of the split ``ood``.

    Nothing is decoded when the stream is made. With a cache, all images are decoded once, when the first experience is
    asked for, and are then read from a memory map; without one they are decoded whenever they are used, in workers if
    the strategy is given ``num_workers``. Either gives the same batches. Inputs are RGB, standardised with ImageNet's
    mean and standard deviation.

    Args:
        source: The folder that holds ``iwildcam_v2.0``, or a :class:`CameraTraps`; nothing is downloaded.
        by: What makes an experience. ``"location"``: a camera's images, or those of several consecutive cameras if
            ``n_experiences`` is given. ``"time"``: a period, over all cameras; periods have about as many images each
            and no burst of images is in two. ``"cluster"``: cameras that see like animals, clustered by k-means on the
            shares of the classes in their training images, each cluster cut into periods.
        n_experiences: Length of the stream. ``None`` is one for each location, 20 periods, or one for each cluster.
        n_clusters: Clusters of ``by="cluster"``, of which ``n_experiences`` must be a multiple.
        min_size: Leave out experiences with fewer training images than this; the streams are then shorter.
        min_test_size: Likewise with fewer test images; 1 leaves no experience without.
        order: ``"time"``, locations by their first image and clusters by the mean time of their images; or
            ``"random"``.
        train: The split to be trained on, one of ``SPLITS``.
        test: The split of the test stream.
        ood: The split of the stream out of distribution.
        classes: Names or labels of the classes to keep; the network then has an output for each of them, in the order
            of their labels. All when ``None``.
        size: Height and width in pixels, or one number for both.
        cache: The folder for caches of images, ``True`` for that of the source, or else ``images`` in what
            ``PLASTICITY_CL_DATA`` names or else in ``~/.cache/plasticity-cl``, ``False`` for no cache. A cache takes
            3 * height * width bytes for each image of the data set, 5.6 GB in all at 96 x 96.
        unreadable: ``"raise"`` an error for an image that is missing or broken, or ``"skip"`` and list them, which
            needs a cache.
        seed: Root of the random order and of the clustering.

    Returns:
        The benchmark, with lazy streams.

    Raises:
        UserError: If the data set is missing or not as published, or an argument is unknown or out of its range. When
            an experience is asked for, if an image cannot be read or the cache cannot be written.
    """
    named: list[tuple[str, str, Sequence[str]]] = [("by", by, get_args(By)), ("order", order, get_args(Order))]
    named += [("split", split, SPLITS) for split in (train, test, ood)]
    for kind, given, known in [*named, ("value of unreadable", unreadable, get_args(Unreadable))]:
        if given not in known:
            raise unknown_name(kind, given, known)
    height_width = (size, size) if isinstance(size, int) else tuple(size)
    if len(height_width) != 2 or min(height_width) < 1:
        raise UserError(f"size is {size}: give a number of pixels of at least 1, or height and width")

    if isinstance(source, CameraTraps):
        root, own_cache = source.root, source.cache
    else:
        root, own_cache = Path(source).expanduser(), data_folder() / "images"
    folder = root / FOLDER
    dataset = load_dataset(root)
    rows = _rows(dataset)
    kept, names = _kept_classes(folder, dataset, classes)
    labels = np.full(dataset.n_classes, NOWHERE, dtype=np.int64)
    labels[kept] = np.arange(len(kept))
    labels = labels[rows.label]

    def of_split(name: str) -> Integers:
        found = np.flatnonzero((dataset.split_array == dataset.split_dict[name]) & (labels != NOWHERE))
        if len(found) == 0:
            raise UserError(f"split {name} of {folder} has no images of these classes")
        return found.astype(np.int64)

    trained, tested, outside = of_split(train), of_split(test), of_split(ood)
    cluster_of_row = None
    if by == "location":
        number = by_location(rows, trained, n_experiences, order, seed)
    elif by == "time":
        number = by_time(rows, trained, N_PERIODS if n_experiences is None else n_experiences, order, seed)
    else:
        length = n_clusters if n_experiences is None else n_experiences
        number, cluster_of_row = by_cluster(rows, trained, n_clusters, length, order, seed)
    number = leave_out_small(number, trained, tested, min_size, min_test_size)
    length = int(number.max()) + 1
    locations = np.unique(rows.location[outside], return_inverse=True)[1]
    at_location = np.full(len(number), NOWHERE, dtype=np.int64)
    at_location[outside] = locations
    of_each = {
        "train": rows_of_each(number, trained, length),
        "test": rows_of_each(number, tested, length),
        "ood": rows_of_each(at_location, outside, int(locations.max()) + 1),
    }
    cluster = None if cluster_of_row is None else np.array([cluster_of_row[e[0]] for e in of_each["train"]])
    files = ImageFiles(folder / "train", dataset._input_array, height_width)
    where = own_cache if isinstance(cache, bool) else Path(cache).expanduser()
    store = ImageStore(files, None if cache is False else _cache_folder(where, folder, height_width), unreadable)
    return WildsScenario(
        "iwildcam", of_each, labels, store, dataset=dataset, classes=kept, class_names=names, cluster=cluster
    )


def load_dataset(root: Path) -> Any:
    """The ``wilds`` package's own ``IWildCamDataset``, made without a look at the network.

    Raises:
        UserError: If the data set is not there, or not as published.
    """
    # Left to itself, wilds would make an empty folder where there is none.
    folder = check_present(root)
    # Importing it draws from Python's global generator, which is a run's or the user's own.
    with _without_network_check(), preserve_rng():
        from wilds.datasets.iwildcam_dataset import IWildCamDataset  # type: ignore[import-untyped]
    try:
        with _without_garbage_collection():
            dataset = IWildCamDataset(version=VERSION, root_dir=str(root))
    except Exception as error:  # it checks nothing: whatever its parsers make of foreign files
        raise _explained(folder / "metadata.csv", error) from error
    if dataset.y_array.dtype != torch.int64 or dataset.metadata_array.dtype != torch.int64:
        raise _explained(folder / "metadata.csv", ValueError("its numbers are not all whole"))
    return dataset


@contextmanager
def _without_network_check() -> Iterator[None]:
    """Keep ``wilds`` from asking the network for a newer version of itself when it is imported."""
    before = sys.modules.get("outdated")
    sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["outdated"]
        if before is not None:
            sys.modules["outdated"] = before


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Halve the time in which ``wilds`` makes its million small objects, none of which is garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _explained(path: Path, error: Exception) -> UserError:
    """Find out what in the metadata makes ``wilds`` fail. Costly, so only after it has."""
    import pandas as pd  # type: ignore[import-untyped]

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except Exception as broken:
        return UserError(f"{path} cannot be read: {' '.join(str(broken).split())}")
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        return UserError(f"{path} has no column {missing[0]!r}; it must have {', '.join(_COLUMNS)}")

    def first(wrong: npt.NDArray[np.bool_], column: str, what: str) -> UserError:
        row = int(wrong.argmax())
        return UserError(f"{path}, line {row + 2}: {column} is {table[column][row]!r}, {what}")

    known = table["split"].isin(SPLITS).to_numpy()
    if not known.all():
        return first(~known, "split", f"none of {', '.join(SPLITS)}")
    dated = pd.to_datetime(table["datetime"], format=_DATE, errors="coerce").notna().to_numpy()
    if not dated.all():
        return first(~dated, "datetime", "no date like 2013-06-05 05:44:19.000")
    for column in ("y", "location_remapped", "sequence_remapped"):
        whole = table[column].str.fullmatch(r"\d+").to_numpy(dtype=bool)
        if not whole.all():
            return first(~whole, column, "no whole number of 0 or more")
        values = np.unique(table[column].astype(np.int64))
        if len(values) == 0 or values[-1] != len(values) - 1:
            gap = next(i for i in range(len(values) + 1) if i == len(values) or values[i] != i)
            return UserError(f"{path}: {column} has gaps, {gap} is missing; it must count from 0 without gaps")
    return UserError(f"{path} is not as published: {' '.join(str(error).split()) or type(error).__name__}")


def _rows(dataset: Any) -> Rows:
    table = dataset.metadata_array.numpy()
    column = {name: table[:, i] for i, name in enumerate(dataset.metadata_fields)}
    months = ((column["year"] - 1970) * 12 + column["month"] - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]").astype(np.int64) + column["day"] - 1
    time = ((days * 24 + column["hour"]) * 60 + column["minute"]) * 60 + column["second"]
    return Rows(location=column["location"], sequence=column["sequence"], time=time, label=column["y"])


def _kept_classes(folder: Path, dataset: Any, classes: Sequence[str | int] | None) -> tuple[Integers, list[str]]:
    """The labels to keep, rising, and their names."""
    names = _class_names(folder / "categories.csv", dataset.n_classes)
    if classes is None:
        return np.arange(dataset.n_classes), names
    number = {name: label for label, name in enumerate(names)}
    kept = set()
    for wanted in classes:
        if isinstance(wanted, str):
            if wanted not in number:
                raise unknown_name("class", wanted, number)
            kept.add(number[wanted])
        elif 0 <= wanted < dataset.n_classes:
            kept.add(int(wanted))
        else:
            raise UserError(f"unknown class {wanted}: there are {dataset.n_classes}, from 0")
    if len(kept) < 2:
        raise UserError(f"classes names {len(kept)} class: at least 2 are needed to tell apart")
    return np.array(sorted(kept), dtype=np.int64), [names[label] for label in sorted(kept)]


def _class_names(path: Path, n_classes: int) -> list[str]:
    import pandas as pd

    try:
        table = pd.read_csv(path, keep_default_na=False)
        names = {int(y): str(name) for y, name in zip(table["y"], table["name"], strict=True)}
        return [names[label] for label in range(n_classes)]
    except Exception as error:
        raise UserError(f"{path} does not give a name for each of the {n_classes} classes: {error!r}") from error


def _cache_folder(parent: Path, folder: Path, size: tuple[int, int]) -> Path:
    """The folder of one cache, named by all that its bytes depend on."""
    digest = hashlib.sha256((folder / "metadata.csv").read_bytes()).hexdigest()[:16]
    return parent / f"{folder.name}-{digest}-{size[0]}x{size[1]}-bilinear"
