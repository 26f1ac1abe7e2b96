"""How often 95% intervals hold the mean they are for: those of the report, and a percentile bootstrap beside them.

    python scripts/interval_coverage.py            seconds

Single intervals of 3, 5 and 10 seeds, from populations that are normal and from some that are not, and the twenty
intervals of a table at once. The percentile bootstrap is what many reports use; with few seeds it is much too narrow.
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from plasticity_cl.report.statistics import t_interval

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]

SEEDS = (3, 5, 10)
IN_A_TABLE = 20
RESAMPLES = 1000
# Each with its mean.
POPULATIONS: dict[str, tuple[float, Draw]] = {
    "normal": (0.0, lambda random, shape: random.normal(size=shape)),
    "t, 3 degrees of freedom": (0.0, lambda random, shape: random.standard_t(3, size=shape)),
    "lognormal, sigma 0.5": (float(np.exp(0.125)), lambda random, shape: random.lognormal(0, 0.5, size=shape)),
    "lognormal, sigma 1": (float(np.exp(0.5)), lambda random, shape: random.lognormal(0, 1, size=shape)),
    "beta(0.5, 3)": (0.5 / 3.5, lambda random, shape: random.beta(0.5, 3, size=shape)),
    "one seed in five collapses": (
        0.8 * 0.9 + 0.2 * 0.1,
        lambda random, shape: np.where(random.random(shape) < 0.8, 0.9, 0.1) + random.normal(0, 0.02, size=shape),
    ),
}


def main() -> None:
    """Draw, and print the share of intervals that hold the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="samples of each size from each population")
    options = parser.parse_args()

    print(" " * 26 + "".join(f"{kind:>18}" for kind in ("t", "bootstrap", f"t, all {IN_A_TABLE} at once")))
    print(f"{'seeds':<26}" + "".join(f"{n:>6}" for n in SEEDS * 3))
    for name, (mean, draw) in POPULATIONS.items():
        random = np.random.default_rng(0)
        shares = [
            [covered(t_interval(draw(random, (n, options.draws))), mean).mean() for n in SEEDS],
            [covered(percentile_bootstrap(draw(random, (n, options.draws)), random), mean).mean() for n in SEEDS],
            [
                covered(t_interval(draw(random, (n, options.draws * IN_A_TABLE)), IN_A_TABLE), mean)
                .reshape(options.draws, IN_A_TABLE)
                .all(axis=1)
                .mean()
                for n in SEEDS
            ],
        ]
        print(f"{name:<26}" + "".join(f"{share:>6.3f}" for of_kind in shares for share in of_kind))


def covered(interval: tuple[Array, Array], mean: float) -> NDArray[np.bool_]:
    """Which intervals hold the mean."""
    low, high = interval
    return (low <= mean) & (mean <= high)


def percentile_bootstrap(values: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Quantiles of the means of draws with replacement, for values ``[n, ...]``."""
    n = len(values)
    means = np.zeros((RESAMPLES, *values.shape[1:]))
    for column in random.integers(0, n, size=(RESAMPLES, n)).T:
        means += values[column]
    low, high = np.quantile(means / n, [0.025, 0.975], axis=0)
    return low, high


if __name__ == "__main__":
    main()
