"""Cutting the rows of a data set into experiences: by place, by time, or by both.

Each function says for every row, of whatever split, which experience it belongs to; only the rows that are trained on
decide about the borders. The rows of a test split that fall to an experience are its test in distribution.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from plasticity_cl.errors import UserError
from plasticity_cl.seeding import derive_seed

Integers = npt.NDArray[np.int64]
Order = Literal["time", "random"]

NOWHERE = -1
"""The number of a row that belongs to no experience."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What cutting needs to know of each row of the metadata, arrays ``[N]``.

    Attributes:
        location: Where the image was taken, from 0.
        sequence: The burst of images that it belongs to, from 0.
        time: When it was taken, in seconds.
        label: Its class, from 0.
    """

    location: Integers
    sequence: Integers
    time: Integers
    label: Integers


def cut(sizes: Integers, n_parts: int, what: str) -> Integers:
    """Cut units that must stay whole into parts of consecutive units, as equal in size as whole units allow.

    Args:
        sizes: ``[m]`` the size of each unit, in order.
        n_parts: How many parts; each gets at least one unit.
        what: What the units are, for the error.

    Returns:
        ``[m]`` the part of each unit, rising from 0 to ``n_parts - 1``.

    Raises:
        UserError: If there are fewer units than parts.
    """
    if not 1 <= n_parts <= len(sizes):
        raise UserError(f"n_experiences asks for {n_parts} parts of {len(sizes)} {what}: each part needs at least one")
    before = np.concatenate([[0], np.cumsum(sizes)])
    wanted = np.arange(1, n_parts) * before[-1] / n_parts
    after = np.searchsorted(before, wanted)
    borders = np.where(wanted - before[after - 1] < before[after] - wanted, after - 1, after)
    # Where one unit is larger than a part, borders meet: each is moved on, then back, to leave every part a unit.
    steps = np.arange(1, n_parts)
    borders = np.maximum.accumulate(np.maximum(borders, 1) - steps) + steps
    borders = np.minimum(borders, len(sizes) - n_parts + steps)
    return np.searchsorted(borders, np.arange(len(sizes)), side="right").astype(np.int64)


def by_location(rows: Rows, train: Integers, n_experiences: int | None, order: Order, seed: int) -> Integers:
    """One experience for each location, or for several consecutive ones where fewer experiences are asked for.

    Args:
        rows: The metadata.
        train: Rows to be trained on.
        n_experiences: How many experiences; one a location when ``None``.
        order: ``"time"``: a location comes when its camera took its first image; or ``"random"``.
        seed: Root of the random order.

    Returns:
        ``[N]`` the experience of each row; ``NOWHERE`` at locations without training rows.

    Raises:
        UserError: If there are fewer locations than experiences.
    """
    locations = _in_order(rows.location, rows, train, order, seed)
    sizes = np.bincount(rows.location[train], minlength=locations.max() + 1)[locations]
    part = np.arange(len(locations)) if n_experiences is None else cut(sizes, n_experiences, "locations")
    return _look_up(rows.location, locations, part)


def by_time(rows: Rows, train: Integers, n_experiences: int, order: Order, seed: int) -> Integers:
    """Experiences that follow each other in time, cut where no sequence is cut.

    Args:
        rows: The metadata.
        train: Rows to be trained on.
        n_experiences: How many experiences.
        order: ``"time"``, or ``"random"`` to have the same experiences in a random order.
        seed: Root of the random order.

    Returns:
        ``[N]`` the experience of each row: that of its sequence, or of the time at which its sequence starts.

    Raises:
        UserError: If there are fewer sequences than experiences.
    """
    number = _periods(rows, train, np.arange(len(rows.time)), n_experiences)
    if order == "random":
        number = _permutation(n_experiences, seed)[number]
    return number


def by_cluster(
    rows: Rows, train: Integers, n_clusters: int, n_experiences: int, order: Order, seed: int
) -> tuple[Integers, Integers]:
    """Locations with like classes together, and each such cluster cut by time.

    Clusters are those of k-means on the share of each class among the training rows of a location.

    Args:
        rows: The metadata.
        train: Rows to be trained on.
        n_clusters: How many clusters.
        n_experiences: How many experiences, a multiple of ``n_clusters``: the first so many are periods of the first
            cluster, and so on.
        order: ``"time"``: a cluster comes by the mean time of its training rows; or ``"random"``.
        seed: Root of the clustering and of the random order.

    Returns:
        ``[N]`` the experience of each row, ``NOWHERE`` at locations without training rows; and ``[N]`` its cluster.

    Raises:
        UserError: If the numbers do not fit each other or the data.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    locations, index = np.unique(rows.location[train], return_inverse=True)
    if not 1 <= n_clusters <= len(locations):
        raise UserError(f"n_clusters is {n_clusters}: there are {len(locations)} locations, ask for 1 to that")
    if n_experiences % n_clusters:
        raise UserError(
            f"n_experiences is {n_experiences}: by='cluster' cuts each of the {n_clusters} clusters into as many "
            "periods, so it must be a multiple of n_clusters"
        )
    counts = np.zeros((len(locations), rows.label.max() + 1))
    np.add.at(counts, (index, rows.label[train]), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        # Said below as an error: there are fewer kinds of locations than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        k_means = KMeans(n_clusters, n_init=10, random_state=derive_seed(seed, "k-means") % 2**32)
        found = k_means.fit_predict(shares).astype(np.int64)
    if len(np.unique(found)) < n_clusters:
        kinds = len(np.unique(found))
        raise UserError(f"n_clusters is {n_clusters}: the locations' classes make {kinds} different clusters only")
    cluster_of_row = _look_up(rows.location, locations, found)
    ordered = _in_order(cluster_of_row, rows, train, order, seed, mean=True)
    cluster_of_row = _look_up(cluster_of_row, ordered, np.arange(n_clusters))
    periods = n_experiences // n_clusters
    number = np.full(len(rows.time), NOWHERE, dtype=np.int64)
    for cluster in range(n_clusters):
        inside = np.flatnonzero(cluster_of_row == cluster)
        number[inside] = cluster * periods + _periods(rows, train, inside, periods)
    return number, cluster_of_row


def leave_out_small(number: Integers, train: Integers, test: Integers, min_size: int, min_test_size: int) -> Integers:
    """Leave out the experiences with too few training or test rows, and number the others anew.

    Raises:
        UserError: If none is left.
    """
    sizes = np.bincount(number[train])
    test_sizes = np.bincount(number[test][number[test] != NOWHERE], minlength=len(sizes))
    kept = np.flatnonzero((sizes >= min_size) & (test_sizes >= min_test_size))
    if len(kept) == 0:
        raise UserError(
            f"no experience has {min_size} training and {min_test_size} test images: the largest have {sizes.max()} "
            f"and {test_sizes.max()}; lower min_size or min_test_size"
        )
    return _look_up(number, kept, np.arange(len(kept)))


def rows_of_each(number: Integers, rows: Integers, n_experiences: int) -> list[Integers]:
    """The rows of each experience among ``rows``, in their order."""
    order = np.argsort(number[rows], kind="stable")
    ordered = rows[order]
    borders = np.searchsorted(number[ordered], np.arange(n_experiences + 1))
    return [ordered[start:end] for start, end in itertools.pairwise(borders)]


def _periods(rows: Rows, train: Integers, inside: Integers, n_periods: int) -> Integers:
    """The period of each row ``inside``, the training rows of which decide on the borders."""
    starts = np.full(rows.sequence.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(starts, rows.sequence, rows.time)
    trained = np.zeros(len(rows.time), dtype=bool)
    trained[train] = True
    sequences, sizes = np.unique(rows.sequence[inside[trained[inside]]], return_counts=True)
    order = np.lexsort((sequences, starts[sequences]))
    sequences, sizes = sequences[order], sizes[order]
    part = cut(sizes, n_periods, "sequences")
    first_start = starts[sequences][np.searchsorted(part, np.arange(n_periods))]
    of_sequence = np.maximum(np.searchsorted(first_start, starts, side="right") - 1, 0)
    of_sequence[sequences] = part
    return of_sequence[rows.sequence[inside]].astype(np.int64)


def _in_order(group: Integers, rows: Rows, train: Integers, order: Order, seed: int, *, mean: bool = False) -> Integers:
    """The groups among the training rows, by the time of their first row, or by its mean, or in a random order."""
    groups, index = np.unique(group[train], return_inverse=True)
    if order == "random":
        return groups[_permutation(len(groups), seed)]
    times = rows.time[train].astype(np.float64)
    if mean:
        when = np.bincount(index, times) / np.bincount(index)
    else:
        when = np.full(len(groups), np.inf)
        np.minimum.at(when, index, times)
    return groups[np.argsort(when, kind="stable")]


def _permutation(n: int, seed: int) -> Integers:
    return np.random.default_rng(derive_seed(seed, "order")).permutation(n).astype(np.int64)


def _look_up(keys: Integers, known: Integers, values: Integers) -> Integers:
    """``values[i]`` where a key is ``known[i]``, and ``NOWHERE`` where it is not known; keys are -1 or more."""
    table = np.full(max(int(keys.max()), int(known.max())) + 2, NOWHERE, dtype=np.int64)
    table[known] = values
    return table[keys]
