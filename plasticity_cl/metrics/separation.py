"""The separation: how much of what was lost is lost ability to learn, and how much is forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plasticity_cl.errors import UserError

Scores = Sequence[float] | npt.NDArray[np.floating]

_LARGE = 2.0**18


@dataclass(frozen=True)
class Separation:
    """The separation of every experience, arrays ``[K]`` of float64; see :func:`separate`."""

    learned: npt.NDArray[np.float64]
    final: npt.NDArray[np.float64]
    fresh: npt.NDArray[np.float64]
    baseline: npt.NDArray[np.float64]
    handicap: npt.NDArray[np.float64]
    plasticity_loss: npt.NDArray[np.float64]
    forgetting: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]


def separate(learned: Scores, final: Scores, fresh: Scores, baseline: Scores | None = None) -> Separation:
    """Split what a network lacks at the end of a stream into handicap, plasticity loss and forgetting.

    For experience k of K, with any score where higher is better::

        S_ref - A_Kk    =  (S_ref - S_k)  +  (S_k - A_kk)      +  (A_kk - A_Kk)
        total           =  handicap       +  plasticity_loss   +  forgetting

    The handicap is what the strategy costs a fresh network: strategies have to be compared with it, since one that
    hardly learns at all has little to lose. The plasticity loss is a *net* learning deficit: help from earlier
    experiences (forward transfer) is in it and can make it negative. Forgetting is negative where later experiences
    helped (backward transfer).

    The equation holds to the last bit. For that the scores are rounded to multiples of 2^-32 (2e-10), or for scores
    beyond 2^18 in size to 2^-50 of the largest of the experience; the rounded scores are returned. An infinite score,
    as R2 of an infinite prediction is, counts as that largest size, 2^18 or more: left out it would hide the worst.

    Args:
        learned: A_kk, ``[K]``: the score on experience k right after training on it.
        final: A_Kk, ``[K]``: the score on experience k at the end of the stream.
        fresh: S_k, ``[K]``: the score of a fresh network trained on experience k alone.
        baseline: S_ref, ``[K]``: the score that the strategies to be compared have in common as their reference, that
            of a fresh network without any intervention for instance. ``fresh`` if not given: the handicap is then 0.

    Returns:
        The four scores and, per experience, ``handicap``, ``plasticity_loss``, ``forgetting`` and ``total``. Each is
        NaN where a score that it is made of is NaN, and so is then the total.

    Raises:
        UserError: If the arrays are not one-dimensional and equally long.
    """
    given = {"learned": learned, "final": final, "fresh": fresh} | ({} if baseline is None else {"baseline": baseline})
    arrays = [np.asarray(scores, dtype=np.float64) for scores in given.values()]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        *names, last = given
        raise UserError(
            "separate needs one-dimensional arrays of one length, one score an experience; "
            f"{', '.join(names)} and {last} have shapes {', '.join(map(str, shapes[:-1]))} and {shapes[-1]}"
        )
    finite = [np.where(np.isfinite(array), np.abs(array), 0.0) for array in arrays]
    size = np.maximum(np.max(finite, axis=0), _LARGE)
    quantum = np.exp2(np.ceil(np.log2(size)) - 50)
    a_kk, a_Kk, s, *reference = (np.round(np.clip(array, -size, size) / quantum) * quantum for array in arrays)
    s_ref = reference[0] if reference else s
    return Separation(
        learned=a_kk,
        final=a_Kk,
        fresh=s,
        baseline=s_ref,
        handicap=s_ref - s,
        plasticity_loss=s - a_kk,
        forgetting=a_kk - a_Kk,
        total=(s_ref - s) + (s - a_kk) + (a_kk - a_Kk),
    )
