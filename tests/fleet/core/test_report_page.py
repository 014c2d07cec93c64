"""The page of a report: well-formed, with the right numbers in it, whatever things are called."""

from xml.etree import ElementTree as ET

import pytest

from fleet.core.report_page import html, svg
from tests.fleet.reports import made, pushed, window

SVG = "{http://www.w3.org/2000/svg}"
MILLION = 1_000_000


def words(picture: str) -> list[str]:
    """Return what is written in it, without the hints for who points at it."""
    every = ET.fromstring(picture).iter(f"{SVG}text")
    return ["".join([each.text or "", *(inner.tail or "" for inner in each)]) for each in every]


def full(name: str = "cam"):
    return made(
        *(
            window(f"{name}-{n}", days_ago=day, requests=100, labelled=20, correct=18,
                   confusion={"0,0": 12, "0,1": 2, "1,1": 6}, predicted={0: 60, 1: 40},
                   latency={"bins": {300: 90, 500: 10}}, slo_misses=3,
                   calibration={18: (20, 18_500_000, 18)},
                   estimate={"samples": 100, "sum_p": 91 * MILLION, "spread": 8 * MILLION},
                   golden={"runs": 1, "samples": 50, "labelled": 50, "correct": 49},
                   drift={0: (70, 10, 10, 10, 0, 0)})
            for n in range(3) for day in (2, 5, 6)
        ),
        by="site",
        labels={f"{name}-{n}": {"site": "<b>&\x01\"" if n else "ulm"} for n in range(3)},
    )  # fmt: skip


def test_the_page_is_well_formed_and_holds_the_numbers() -> None:
    picture = svg(full())

    told = words(picture)
    assert {"digits@1", "90.0%", "98.0%", "~91.0%", "cat", "dog", "moved", "brightness"} <= set(
        told
    )
    assert "cat → dog" in told and "By site" in told and "ulm" in told
    assert ET.fromstring(picture).findtext(f"{SVG}title") == "Report on digits@1"
    assert "nan" not in picture.lower().replace("nan_share", "") and "inf" not in picture


def test_names_that_are_markup_stay_words() -> None:
    told = words(svg(full()))

    assert '<b>&\ufffd"' in told


def test_the_page_has_colours_for_light_and_dark_and_says_what_it_shows() -> None:
    picture = svg(full())

    assert "@media (prefers-color-scheme:dark)" in picture
    names = [each.get("aria-label") or "" for each in ET.fromstring(picture).iter(f"{SVG}g")]
    assert any(name.startswith("Labelled accuracy: 90.0%") for name in names)
    assert any(
        name.startswith("Drift against the baseline:") and "of 3 features" in name for name in names
    )


@pytest.mark.parametrize("version", [1, None])
def test_a_page_without_any_answer_says_so(version: int | None) -> None:
    picture = svg(made(version=version))

    assert ET.fromstring(picture).tag == f"{SVG}svg"
    if version:
        assert "no labels, golden runs or estimates in this time" in words(picture)


def test_releases_side_by_side_are_followed_by_the_newest_that_answered() -> None:
    view = made(window(requests=5, labelled=5, correct=4), version=None,
                releases=(pushed(2, parent="digits@1"), pushed(1)))  # fmt: skip

    told = words(svg(view))

    assert {"Releases", "@2", "@1", "digits@1"} <= set(told)


def test_the_page_for_browsers_holds_the_picture() -> None:
    page = html(full())

    assert page.startswith("<!doctype html>") and svg(full()) in page
