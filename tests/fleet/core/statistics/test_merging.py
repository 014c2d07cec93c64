"""However a stream is cut into windows, and in whatever order they are added: the same sums."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.control import ModelSpec
from agent.engine.scoreboard import Scoreboard
from fleet.core.scores import Totals
from fleet.core.tally import Tally
from tests.fleet.samples import sample_manifest
from wire.manifest import Baseline, FeatureBaseline, Manifest
from wire.telemetry import Histogram, ScoreWindow

EDGES = tuple(place / 10 for place in range(11))
MANIFEST = Manifest.model_validate(
    {
        **sample_manifest().model_dump(),
        "calibration": ((0.0, 0.1), (0.7, 0.6), (1.0, 0.9)),
        "baseline": Baseline(
            samples=100,
            features=(FeatureBaseline(name="confidence", edges=EDGES, counts=(10,) * 10),),
            every=1,
        ),
    }
)
SPEC = ModelSpec("digits", 1, MANIFEST.digest, "int8-onnx", "", {})

Answer = tuple[float, int, float, int | None]
"""Latency in microseconds, class, top score, label."""

latencies = st.one_of(
    st.floats(0, 1e12), st.floats(1, 2), st.sampled_from([0.0, 1.0, 1.02, 900.0, 1e15])
)
answers = st.tuples(
    latencies, st.integers(0, 3), st.floats(0, 1), st.one_of(st.none(), st.integers(0, 3))
)
streams = st.lists(answers, min_size=1, max_size=40)


def windows(stream: list[Answer], cuts: list[int]) -> list[ScoreWindow]:
    """Return what an engine tells of a stream of answers when it is asked at each cut."""
    board, told = Scoreboard(SPEC, 0, MANIFEST), []
    for at, (latency_us, answer, top, label) in enumerate(stream, 1):
        board.answered(f"r-{at}", latency_us, (answer,), [top])
        if label is not None:
            board.label(f"r-{at}", (label,))
        if at % 5 == 0:
            board.failed()
        if at in cuts or at == len(stream):
            taken = board.take(at, None)
            assert taken is not None
            names = {
                "device": "a", "boot": "b", "seq": at, "model": "digits", "version": 1,
                "manifest": SPEC.manifest, "variant": SPEC.variant,
                "start": taken.start, "end": taken.end,
            }  # fmt: skip
            told.append(ScoreWindow.model_validate({**names, **taken.counts}))
    return told


def plain(totals: Totals) -> dict[str, Any]:
    """Return the fields to compare: all but how many windows it was."""
    return {
        name: getattr(totals, name)
        for name in Totals.__slots__
        if name not in ("windows", "epsilon_spent")
    }


@given(streams, st.lists(st.integers(1, 40), max_size=8), st.data())
def test_sums_of_any_split_in_any_order_are_those_of_the_single_stream(
    stream: list[Answer], cuts: list[int], data: st.DataObject
) -> None:
    [whole] = windows(stream, [])
    parts = data.draw(st.permutations(windows(stream, cuts)))

    sums = [Totals.single(each) for each in parts]
    while len(sums) > 1:
        # Any two of them, as hours are added to hours and devices to devices.
        first = sums.pop(data.draw(st.integers(0, len(sums) - 1)))
        place = data.draw(st.integers(0, len(sums) - 1))
        sums[place] = first.merge(sums[place])

    assert plain(sums[0]) == plain(Totals.single(whole))
    assert sums[0].windows == len(parts)


@given(streams, st.lists(st.integers(1, 40), max_size=8), st.data())
def test_a_tally_of_any_split_in_any_order_is_that_of_the_single_stream(
    stream: list[Answer], cuts: list[int], data: st.DataObject
) -> None:
    [whole] = windows(stream, [])
    parts = data.draw(st.permutations(windows(stream, cuts)))
    middle = data.draw(st.integers(0, len(parts)))

    one, other, single = Tally(), Tally(), Tally()
    for window in parts[:middle]:
        one.add(window)
    for window in parts[middle:]:
        other.add(window)
    stored = Tally.of(one.numbers, one.since, one.until, one.rest())
    stored.merge(other)
    single.add(whole)

    names = ("a", "digits", 1, SPEC.manifest, SPEC.variant)
    assert plain(stored.totals(*names)) == plain(single.totals(*names))
    assert plain(stored.totals(*names)) == plain(Totals.single(whole))


@given(streams, st.lists(st.integers(1, 40), max_size=8), st.integers(0, 8))
def test_what_is_taken_from_a_tally_again_leaves_the_others(
    stream: list[Answer], cuts: list[int], place: int
) -> None:
    parts = windows(stream, cuts)
    left_out = parts[place % len(parts)]
    whole, rest, part = Tally(), Tally(), Tally()
    for window in parts:
        whole.add(window)
        if window is not left_out:
            rest.add(window)
    part.add(left_out)

    whole.less(part)

    names = ("a", "digits", 1, SPEC.manifest, SPEC.variant)
    one, other = (replace(each.totals(*names), since=0, until=0) for each in (whole, rest))
    # Keys whose counts went down to none are gone, or were there without any.
    assert {k: v for k, v in one.latency.bins.items() if v} == other.latency.bins
    assert plain(replace(one, latency=other.latency)) == plain(other)


@given(st.lists(latencies, max_size=60), st.data())
def test_merged_histograms_are_that_of_the_single_stream(
    values: list[float], data: st.DataObject
) -> None:
    def histogram(some: list[float]) -> Histogram:
        bins: dict[int, int] = {}
        for value in some:
            place = Histogram.bin_of(value)
            bins[place] = bins.get(place, 0) + 1
        return Histogram(bins=bins)

    mixed = data.draw(st.permutations(values))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=6)))
    merged = Histogram()
    for start, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
        merged = histogram(mixed[start:end]).merge(merged)

    assert merged == histogram(values)
