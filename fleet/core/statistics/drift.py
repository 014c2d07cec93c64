"""Have the inputs or answers of a model changed against its reference?

A *verdict* on one window asks three things of each feature: a two-sample test, whose error is
controlled over all features together; a least effect, so that many samples do not make a
trifle an alarm; and enough samples to tell anything. `hysteresis` makes alerts of verdicts.

What it cannot see: drift within a bin, drift of features together that each alone does not
show, and whether the answers got worse. Drift alone is a reason to look, never to roll back.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import mul

from fleet.core.statistics.distances import jensen_shannon, population_stability_index
from fleet.core.statistics.hysteresis import Hysteresis
from fleet.core.statistics.tails import chi_square_tail, f_tail
from wire.manifest import FeatureBaseline

APART = 2
"""The last bins of a feature are no places on its scale: NaN, then outside of all others."""

FEWEST = 50
"""Independent samples on either side without which nothing is said; of a stream whose samples
repeat each other four times as many."""

_EDGE_SAMPLES = 2
"""The outer edges are the reference's extremes: its two samples next to "outside"."""
_LEAST_EXPECTED = 5.0
_FEWEST_SLICES = 4
_FEWEST_LONGER = 8
_REPEATING = 1.5
_UPPER = 1.645
"""Of a normal distribution one in twenty is further above its mean, in standard deviations."""
_YEAR_WINDOWS_S = 365 * 86_400


@dataclass(frozen=True, slots=True)
class DriftPolicy:
    """When drift is worth an alert."""

    rate: float = 0.01
    """False discoveries: of windows without any drift, this share alarms at most."""
    effect: float = 0.1
    """Least Jensen-Shannon distance (base 2), less what chance brings: a shift by a quarter of
    a standard deviation, or two in a hundred values that are NaN and were not before."""
    samples: int = FEWEST
    """Fewest independent samples on either side."""
    hysteresis: Hysteresis = Hysteresis()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class DesignEffect:
    """How many samples of a stream say what one independent sample would."""

    effect: float = 1.0
    """As measured, at least 1."""
    freedom: float = math.inf
    """Degrees of freedom of the measurement; infinite for a number that is known."""

    @property
    def upper(self) -> float:
        """What it may well be: one in twenty measurements is so far too low."""
        return self.effect * (1 + _UPPER * math.sqrt(2 / self.freedom))


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """One feature of one window against the reference."""

    p: float
    """How likely chance alone is to bring so large a change."""
    effect: float
    """Jensen-Shannon distance, less what chance brings."""
    part: str
    """Where the change is the least likely chance: `values`, `unseen` (in bins that the
    reference left empty), `NaN` or `outside`."""
    samples: int
    independent: float
    """How many independent samples those are worth."""
    distance: float
    """The plain Jensen-Shannon distance, for people to read; as `psi`, it grows by chance."""
    psi: float
    text: str
    """In words, without a verdict."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A feature with the verdict on it."""

    name: str
    drift: FeatureDrift
    adjusted_p: float
    """After Benjamini and Hochberg, over all features that were judged together."""
    alarm: bool


@dataclass(frozen=True, slots=True)
class DriftVerdict:
    """One window's verdict."""

    alarm: bool | None
    """None: too few samples to tell."""
    findings: tuple[Finding, ...]
    """The largest effect first; features without enough samples are left out."""
    text: str


def reference_counts(feature: FeatureBaseline) -> tuple[int, ...]:
    """Return a baseline's counts in the order a window has them: bins, NaN, outside."""
    return (*feature.counts, feature.nan, feature.outside)


def feature_drift(
    reference: Sequence[int],
    live: Sequence[int],
    design: DesignEffect = DesignEffect(),
    apart: int = APART,
    samples: int = FEWEST,
) -> FeatureDrift | None:
    """Compare live counts with the reference's; None with too few samples on either side.

    NaN, outside and bins that the reference left empty are compared each as a share of all
    (Fisher's exact test), the other bins by the two-sample chi-square, neighbours pooled until
    each holds five expected samples on either side. These parts are independent when nothing
    changed, and p is that of the smallest of them. Both samples are random: a reference is never
    taken for the truth.

    `design` is what `design_effect` measured: live counts weigh so many times less, in p by the
    upper end of the measurement. Classes have no bins apart: `apart` is 0.

    Raises:
        ValueError: the bins differ in number: the manifest and the agent disagree.

    Source: Cochran 1952 (pooling); Rao and Scott 1981 (design effects); Sidak 1967; Good 1953.
    """
    if len(reference) != len(live) or len(live) <= apart:
        raise ValueError(
            f"drift: expected counts of the same bins, got {len(reference)} and {len(live)}"
        )
    first, second = sum(reference), sum(live)
    thin, upper = max(1.0, design.effect), max(1.0, design.upper)
    independent = second / thin
    if first < samples or independent < samples:
        return None
    # So few runs of samples that repeat each other differ more in length than a mean tells.
    if upper > _REPEATING and second / upper < 4 * samples:
        return None
    parts = _parts(reference, [count / upper for count in live], apart, design)
    part, smallest = min(parts, key=lambda one: one[1])
    distance = jensen_shannon(reference, live)
    used = sum(1 for one, other in zip(reference, live, strict=True) if one or other)
    # The mean of the squared distance between two samples of one distribution.
    chance = (used - 1) * (1 / first + 1 / independent) / (8 * math.log(2))
    effect = math.sqrt(max(0.0, distance**2 - chance))
    p = -math.expm1(len(parts) * math.log1p(-min(smallest, 1 - 1e-16)))
    shown = [f"distance {distance:.3f}, {effect:.3f} beyond chance", f"p = {p:.2g}"]
    if part in ("NaN", "outside"):
        place = len(live) - (2 if part == "NaN" else 1)
        shown.insert(
            0, f"{part} {_percent(reference[place], first)} -> {_percent(live[place], second)}"
        )
    shown.append(f"{second} samples against {first}")
    if thin > 1:
        shown.append(f"worth {independent:.0f} independent ones")
    return FeatureDrift(
        p=p,
        effect=effect,
        part=part,
        samples=second,
        independent=independent,
        distance=distance,
        psi=population_stability_index(reference, live),
        text=", ".join(shown),
    )


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f}%"


def _parts(
    reference: Sequence[int], live: Sequence[float], apart: int, design: DesignEffect
) -> list[tuple[str, float]]:
    """Return (name, p) of each part in which there is anything to compare."""
    parts = []
    kept = len(live) - apart
    rest = [float(sum(reference)), float(sum(live))]
    for place, name in zip(range(kept, len(live)), ("NaN", "outside"), strict=False):
        # The reference's own extremes are edges: it has a little outside by construction.
        mine = reference[place] + (_EDGE_SAMPLES if name == "outside" else 0)
        if reference[place] or live[place]:
            parts.append((name, _fisher(mine, rest[0], live[place], rest[1])))
        rest = [rest[0] - reference[place], rest[1] - live[place]]
    bins, counts = reference[:kept], live[:kept]
    unseen = sum(n for r, n in zip(bins, counts, strict=True) if not r)
    if unseen and rest[0]:
        parts.append(("unseen", _fisher(_unseen(bins), rest[0], unseen, rest[1])))
    parts.append(("values", _chi_square(bins, counts, design)))
    return parts


def _unseen(reference: Sequence[int]) -> float:
    """Return how many reference samples the bins that it left empty may well stand for.

    Good and Turing: as much is missing as was seen once; two standard errors more, and at most
    one sample a bin.
    """
    once, twice = sum(r == 1 for r in reference), sum(r == 2 for r in reference)
    return min(sum(r == 0 for r in reference), once + 2 * math.sqrt(once + 2 * twice) + 2)


def _fisher(mine: float, of_mine: float, theirs: float, of_theirs: float) -> float:
    """Return the two-sided p of two shares, exact for whole counts.

    Counts of a thinned stream are rounded towards each other.
    """
    k, n = math.floor(theirs), math.floor(of_theirs)
    total = math.floor(of_mine) + n
    marked = round(mine) + k
    if k * of_mine < mine * n:
        k = min(math.ceil(theirs), n)
        marked = round(mine) + k
    mean = marked * n / total
    step = 1 if k >= mean else -1
    term = math.exp(
        _choose(marked, k) + _choose(total - marked, n - k) - _choose(total, n)
    )  # of exactly k
    tail = 0.0
    lowest, highest = max(0, n - (total - marked)), min(marked, n)
    while lowest <= k <= highest and term > tail * 1e-17:
        tail += term
        if step > 0:
            term *= (marked - k) * (n - k) / ((k + 1) * (total - marked - n + k + 1))
        else:
            term *= k * (total - marked - n + k) / ((marked - k + 1) * (n - k + 1))
        k += step
    return min(1.0, 2 * tail)


def _choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _chi_square(reference: Sequence[int], live: Sequence[float], design: DesignEffect) -> float:
    first = sum(reference)
    second = sum(n for r, n in zip(reference, live, strict=True) if r)
    if first <= 0 or second <= 0:
        return 1.0
    bins = _pooled([(r, n) for r, n in zip(reference, live, strict=True) if r])
    freedom = len(bins) - 1
    if freedom < 1:
        return 1.0
    up, down = math.sqrt(second / first), math.sqrt(first / second)
    statistic = sum((up * r - down * n) ** 2 / (r + n) for r, n in bins)
    if math.isinf(design.freedom):
        return chi_square_tail(statistic, freedom)
    return f_tail(statistic / freedom, freedom, design.freedom)


def _pooled(pairs: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Pool neighbours until the reference expects five samples of each bin, on either side.

    The reference alone decides, for its bins may be quantiles: a rule that looks at the live
    counts would then favour bins that happen to be full. Only where so many came that no
    chance explains it, a bin stands for itself whatever was expected.
    """
    first, second = sum(r for r, _ in pairs), sum(n for _, n in pairs)
    smaller = min(first, second)
    bins: list[tuple[float, float]] = []
    r = n = 0.0
    for one, other in pairs:
        r, n = r + one, n + other
        expected, came = r * smaller / first, (r + n) * smaller / (first + second)
        if expected >= _LEAST_EXPECTED - 1e-9 or came >= 3 * _LEAST_EXPECTED:
            bins.append((r, n))
            r = n = 0.0
    if bins and r + n > 0:
        bins[-1] = (bins[-1][0] + r, bins[-1][1] + n)
    return bins


def design_effect(slices: Iterable[Sequence[int]]) -> DesignEffect:
    """Measure how alike samples of one slice are, from counts of slices of one stream in order.

    Slices of a device are spans of time, those of a fleet its devices. Counts of independent
    samples differ between slices as a multinomial has it; what they differ more is the effect,
    1 for independent samples, 19 where each frame repeats the one before in nine of ten cases.
    Where neighbouring slices resemble each other too, longer ones are tried, while eight are
    left, and the largest effect counts. Fewer than four slices measure nothing: then the
    effect is 1, and the stream is taken for independent samples.

    A change in the middle of the slices also makes them differ: it costs power, never alarms.

    Source: Rao and Scott 1981, "The analysis of categorical data from complex sample surveys";
    Thomas and Rao 1987 (the F correction for a measured effect).
    """
    rows = [row for row in slices if sum(row)]
    best: DesignEffect | None = None
    shorter: DesignEffect | None = None
    while len(rows) >= (_FEWEST_SLICES if shorter is None else _FEWEST_LONGER):
        measured = _between(rows)
        if measured is None:
            break
        found = [measured]
        if shorter is not None:
            # What slices miss falls with their length, so twice the length misses half.
            found.append(DesignEffect(2 * measured.effect - shorter.effect, measured.freedom / 4))
        best = max([*found, best or measured], key=lambda one: one.effect)
        shorter = measured
        rows = [
            [a + b for a, b in zip(one, other, strict=True)]
            for one, other in zip(rows[::2], rows[1::2], strict=False)
        ]
    # Slices that differ less than chance has it were measured all the same, not known.
    return DesignEffect() if best is None else DesignEffect(max(1.0, best.effect), best.freedom)


def _between(rows: Sequence[Sequence[int]]) -> DesignEffect | None:
    """Return the chi-square of homogeneity of the rows over its degrees of freedom."""
    columns = [sum(column) for column in zip(*rows, strict=True)]
    used = sum(1 for column in columns if column)
    total = sum(columns)
    if used < 2:
        return None
    # The sum of (count - expected)^2 / expected, multiplied out: reports ask for it often.
    each = [1 / column if column else 0.0 for column in columns]
    squares = math.fsum(sum(map(mul, map(mul, row, row), each)) / sum(row) for row in rows)
    statistic = max(0.0, total * (squares - 1))
    freedom = (len(rows) - 1) * (used - 1)
    return DesignEffect(statistic / freedom, freedom)


def adjusted(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return p-values after Benjamini and Hochberg, in their order.

    Whoever calls all those up to q a discovery is wrong in a share q of them at most, in the
    mean; where nothing changed at all, q is how likely a single discovery is. It holds for
    features that are independent or rise together, and in practice beyond.

    Source: Benjamini and Hochberg 1995; Benjamini and Yekutieli 2001 on dependence.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__, reverse=True)
    result = [1.0] * len(p_values)
    smallest = 1.0
    for place, index in enumerate(order):
        smallest = min(smallest, p_values[index] * len(p_values) / (len(p_values) - place))
        result[index] = smallest
    return tuple(result)


def judge(
    drifts: Mapping[str, FeatureDrift | None],
    policy: DriftPolicy = DriftPolicy(),
) -> DriftVerdict:
    """Return the verdict on one window over all of its features, by name.

    Features of several models may be judged together: then the rate holds for all of them.
    """
    known = [(name, drift) for name, drift in drifts.items() if drift is not None]
    if not known:
        return DriftVerdict(None, (), f"fewer than {policy.samples} independent samples to compare")
    findings = [
        Finding(name, drift, p, p <= policy.rate and drift.effect >= policy.effect)
        for (name, drift), p in zip(known, adjusted([drift.p for _, drift in known]), strict=True)
    ]
    findings.sort(key=lambda found: (not found.alarm, -found.drift.effect, found.name))
    alarms = [found for found in findings if found.alarm]
    if alarms:
        shown = "; ".join(f"{found.name}: {found.drift.text}" for found in alarms[:3])
        more = f"; and {len(alarms) - 3} more" if len(alarms) > 3 else ""
        text = f"{len(alarms)} of {len(findings)} features drifted: {shown}{more}"
    else:
        most = findings[0]
        text = f"no drift in {len(findings)} features; the most: {most.name}: {most.drift.text}"
    return DriftVerdict(bool(alarms), tuple(findings), text)


@dataclass(frozen=True, slots=True)
class StatedRate:
    """How many alerts a device without any drift raises in a year, at most."""

    independent: float
    """If windows are independent of each other."""
    any_dependence: float
    """However they depend on each other."""


def false_alerts_per_year(
    every_s: float,
    policy: DriftPolicy = DriftPolicy(),
) -> StatedRate:
    """Return the false alerts per device and year with one verdict every so many seconds."""
    windows = _YEAR_WINDOWS_S / every_s
    rule = policy.hysteresis
    return StatedRate(
        windows * rule.raises_per_window(policy.rate),
        windows * rule.most_raises_per_window(policy.rate),
    )
