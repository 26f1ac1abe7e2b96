"""The separation: how much of what was lost is lost ability to learn, and how much is forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plasticity_cl.errors import UserError

Scores = Sequence[float] | npt.NDArray[np.floating]


@dataclass(frozen=True)
class Separation:
    """The separation of every experience, arrays ``[K]`` of float64; see :func:`separate`."""

    learned: npt.NDArray[np.float64]
    final: npt.NDArray[np.float64]
    fresh: npt.NDArray[np.float64]
    plasticity_loss: npt.NDArray[np.float64]
    forgetting: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]


def separate(learned: Scores, final: Scores, fresh: Scores) -> Separation:
    """Split what a network lacks at the end of a stream into plasticity loss and forgetting.

    For experience k of K, with any score where higher is better::

        S_k - A_Kk      =  (S_k - A_kk)      +  (A_kk - A_Kk)
        total           =  plasticity_loss   +  forgetting

    The plasticity loss is a *net* learning deficit: help from earlier experiences (forward transfer) is in it and can
    make it negative. Forgetting is negative where later experiences helped (backward transfer).

    The equation holds to the last bit. For that the scores are rounded to multiples of 2^-32 (2e-10), or for scores
    beyond 2^18 in size to 2^-50 of the largest of the experience; the rounded scores are returned.

    Args:
        learned: A_kk, ``[K]``: the score on experience k right after training on it.
        final: A_Kk, ``[K]``: the score on experience k at the end of the stream.
        fresh: S_k, ``[K]``: the score of a fresh network trained on experience k alone.

    Returns:
        The three scores and, per experience, ``plasticity_loss``, ``forgetting`` and ``total``. NaN where a score is.

    Raises:
        UserError: If the arrays are not one-dimensional and equally long.
    """
    arrays = [np.asarray(scores, dtype=np.float64) for scores in (learned, final, fresh)]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise UserError(
            "separate needs three one-dimensional arrays of one length, one score an experience; "
            f"learned, final and fresh have shapes {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    size = np.nan_to_num(np.abs(arrays), nan=0.0, posinf=0.0, neginf=0.0).max(axis=0, initial=0.0)
    quantum = np.exp2(np.maximum(-32, np.ceil(np.log2(np.maximum(size, 1.0))) - 50))
    a_kk, a_Kk, s = (np.round(array / quantum) * quantum for array in arrays)
    with np.errstate(invalid="ignore"):
        return Separation(a_kk, a_Kk, s, plasticity_loss=s - a_kk, forgetting=a_kk - a_Kk, total=s - a_Kk)
