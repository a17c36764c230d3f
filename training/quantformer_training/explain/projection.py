"""Two-dimensional t-SNE that gives the same picture twice, and what may be claimed of neighbours: permutation tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from quantformer.errors import DataError

#: Fewer points have no neighbourhood to keep.
FEWEST_POINTS = 4
#: sklearn's default; small sets get a third of their points.
_PERPLEXITY = 30.0
#: Beyond this many points the exact gradient takes minutes.
_EXACT = 500

Floats = NDArray[np.float64]


def tsne(vectors: NDArray[np.floating], *, seed: int) -> Floats:
    """Positions ``(n, 2)`` of vectors ``(n, width)``; the same for the same vectors and seed.

    Axes, orientation and distances between far groups mean nothing; only who is near whom does.

    Raises:
        DataError: fewer than `FEWEST_POINTS` vectors, or all of them equal.
    """
    points = np.asarray(vectors, np.float64)
    _check(points)
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    # Parallel sums add in an order of their own, and t-SNE blows the last digit up.
    with threadpool_limits(limits=1):
        method = "exact" if len(points) <= _EXACT else "barnes_hut"
        made = TSNE(perplexity=perplexity, init="pca", method=method, random_state=seed, n_jobs=1).fit_transform(points)
    return np.asarray(made, np.float64)


@dataclass(frozen=True, kw_only=True)
class NeighbourTest:
    """Do neighbours in the space of the vectors share a statistic?

    ``rho`` is the rank correlation of each point's statistic with the mean of its ``neighbours`` nearest other points;
    ``chance_low`` and ``chance_high`` hold the central 95 % of it with the statistic permuted among points; ``p`` is
    one-sided. NaN throughout where the statistic does not vary.
    """

    points: int
    neighbours: int
    rho: float
    chance_low: float
    chance_high: float
    p: float

    @property
    def holds(self) -> bool:
        """Whether neighbours are more alike than chance, at one in twenty."""
        return self.p < 0.05


def neighbour_test(
    vectors: NDArray[np.floating],
    statistic: NDArray[np.floating],
    *,
    seed: int,
    group: NDArray[np.integer] | None = None,
    neighbours: int = 5,
    permutations: int = 1000,
) -> NeighbourTest:
    """Test it in the full width, not in the picture.

    With ``group`` ``(n,)`` values are exchanged only inside a group: neurons of one mouse may lie together *and* be alike
    for reasons of the mouse, which is not what is asked.

    Raises:
        DataError: as `tsne`, or the statistic is not one finite number a point.
    """
    points, values = np.asarray(vectors, np.float64), np.asarray(statistic, np.float64)
    _check(points)
    count = len(points)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise DataError(f"the statistic has shape {values.shape}; expected ({count},) finite numbers, one a point")
    # With half of all points as neighbours, their mean says little but that a point is not among them.
    near = max(1, min(neighbours, (count - 1) // 2))
    nothing = float("nan")
    if np.ptp(values) == 0.0:
        return NeighbourTest(
            points=count, neighbours=near, rho=nothing, chance_low=nothing, chance_high=nothing, p=nothing
        )
    # With no argument a point is not its own neighbour, not even where another lies on top of it.
    index = NearestNeighbors(n_neighbors=near).fit(points).kneighbors(return_distance=False)
    ranks = rankdata(values)
    rng = np.random.default_rng(seed)
    blocks = [np.arange(count)] if group is None else [np.flatnonzero(group == label) for label in np.unique(group)]
    mixed = np.tile(ranks, (permutations, 1))
    for block in blocks:
        mixed[:, block] = rng.permuted(mixed[:, block], axis=1)
    found = float(_correlations(ranks[None], index)[0])
    chance = np.concatenate([_correlations(part, index) for part in np.array_split(mixed, max(1, count // 100))])
    low, high = np.quantile(chance, [0.025, 0.975])
    p = (1 + int((chance >= found).sum())) / (1 + permutations)
    return NeighbourTest(points=count, neighbours=near, rho=found, chance_low=float(low), chance_high=float(high), p=p)


@dataclass(frozen=True, kw_only=True)
class PlaneTest:
    """Share of a quantity's variance that a straight line across the map explains, against permuted quantities."""

    r_squared: float
    chance_high: float
    p: float


def plane_test(
    positions: NDArray[np.floating], quantity: NDArray[np.floating], *, seed: int, permutations: int = 1000
) -> PlaneTest:
    """Does a quantity grow across the map, in any direction? ``positions`` ``(n, 2)``, ``quantity`` ``(n,)``."""
    count = len(quantity)
    design = np.column_stack([np.ones(count), positions])
    basis, _ = np.linalg.qr(design)
    centred = np.asarray(quantity, np.float64) - np.mean(quantity)
    total = float(centred @ centred)
    if total == 0.0:
        return PlaneTest(r_squared=float("nan"), chance_high=float("nan"), p=float("nan"))

    def explained(values: Floats) -> float:
        return float(np.square(basis.T @ values).sum() / total)

    found = explained(centred)
    rng = np.random.default_rng(seed)
    chance = np.array([explained(rng.permutation(centred)) for _ in range(permutations)])
    p = (1 + int((chance >= found).sum())) / (1 + permutations)
    return PlaneTest(r_squared=found, chance_high=float(np.quantile(chance, 0.95)), p=p)


def _correlations(ranks: Floats, index: NDArray[np.integer]) -> Floats:
    """Rank correlation ``(m,)`` of each row of ``ranks`` ``(m, n)`` with the mean of its neighbours ``index`` ``(n, k)``."""
    around = rankdata(ranks[:, index].mean(axis=-1), axis=1)
    left, right = (values - values.mean(axis=1, keepdims=True) for values in (ranks, around))
    scale = np.sqrt(np.square(left).sum(axis=1) * np.square(right).sum(axis=1))
    # Where all means are equal nothing goes with anything.
    correlation: Floats = (left * right).sum(axis=1) / np.where(scale > 0, scale, 1.0)
    return correlation


def _check(points: Floats) -> None:
    if points.ndim != 2 or len(points) < FEWEST_POINTS:
        raise DataError(f"vectors have shape {points.shape}; expected (n, width) with n of at least {FEWEST_POINTS}")
    if not np.isfinite(points).all():
        raise DataError(f"{int((~np.isfinite(points)).any(axis=1).sum())} of {len(points)} vectors are not finite")
    if np.ptp(points, axis=0).max(initial=0.0) == 0.0:
        raise DataError(f"all {len(points)} vectors are equal: nothing was learned that could be laid out")
