import math
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.codec import DecodeError, decode, encode
from wire.ids import digest_of
from wire.telemetry import LATENCY_ERROR, Health, Histogram, ScoreWindow

LATENCIES = st.lists(st.floats(1, 1e10), min_size=1, max_size=60)
WINDOW = ScoreWindow(
    device="cam-1", boot="b", seq=1, model="digits", version=1, manifest=digest_of(b""),
    variant="int8", start=0, end=60,
)  # fmt: skip


def histogram(values: list[float]) -> Histogram:
    bins: dict[int, int] = {}
    for value in values:
        place = Histogram.bin_of(value)
        bins[place] = bins.get(place, 0) + 1
    return Histogram(bins=bins)


@given(LATENCIES, st.floats(0, 1))
def test_any_quantile_is_within_one_percent(values, q):
    told = histogram(values).quantile_us(q)
    exact = float(np.quantile(np.asarray(values), q, method="lower"))

    assert told is not None
    assert abs(told - exact) <= LATENCY_ERROR * exact * (1 + 1e-9)


@given(st.lists(LATENCIES, min_size=1, max_size=6), st.randoms())
def test_windows_add_up_to_the_whole_stream_in_any_order(windows, random):
    shuffled = random.sample(windows, len(windows))

    merged = reduce(Histogram.merge, map(histogram, shuffled), Histogram())

    assert merged == histogram([value for window in windows for value in window])
    assert merged.count == sum(map(len, windows))


@given(st.lists(st.floats(0, 1), max_size=3))
def test_less_than_a_microsecond_counts_as_one(values):
    told = histogram(values).quantile_us(0.5)

    assert told is None if not values else math.isclose(told or 0, 1, rel_tol=LATENCY_ERROR)


def test_nothing_has_no_quantile():
    assert Histogram().quantile_us(0.95) is None


@given(LATENCIES)
def test_a_window_reads_as_it_was_written(values):
    window = WINDOW.model_copy(update={"latency": histogram(values), "requests": len(values)})

    assert decode(ScoreWindow, encode(window, deflate=True)) == window


@pytest.mark.parametrize("place", ["-1", "100000", "x", "1.5", "9" * 400])
def test_a_bin_that_no_latency_falls_in_is_refused(place):
    data = encode(WINDOW).replace(b'"bins":{}', f'"bins":{{"{place}":1}}'.encode())

    with pytest.raises(DecodeError, match="bins"):
        decode(ScoreWindow, data)


@pytest.mark.parametrize("count", ["-1", "0.5", "NaN", "1e999", str(2**63), "9" * 400, '"x"'])
@pytest.mark.parametrize("field", ["requests", "start", "end", "seq", "labelled"])
def test_a_count_that_does_not_fit_a_store_is_refused(field, count):
    whole = encode(WINDOW).decode()
    before = whole.index(f'"{field}":') + len(field) + 3
    after = before + len(whole[before:].partition(",")[0])

    with pytest.raises(DecodeError, match=field):
        decode(ScoreWindow, (whole[:before] + count + whole[after:]).encode())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_gauge_is_a_number(value):
    health = Health(
        device="cam-1", boot="b", seq=1, at=1, uptime_s=1, cpu_percent=1.0, load_1m=7.25,
        memory_total_bytes=1, memory_available_bytes=1, disk_free_bytes=1, agent_cpu_percent=0.0,
        agent_rss_bytes=1,
    )  # fmt: skip

    with pytest.raises(DecodeError, match="load_1m"):
        decode(Health, encode(health).replace(b"7.25", value.encode()))
