"""Deltas as version 1 writes them are read for ever; the files stay as they are."""

import hashlib
import json
from pathlib import Path

import pytest

from delta.container import unpack
from delta.decode import decode
from delta.spans import Predictor

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = Path(__file__).parents[2] / "samples"
CASES = sorted(GOLDEN.glob("*.ffd"))


def base_of(case: Path) -> bytes:
    """A sample model, or the file beside the delta."""
    told = json.loads((GOLDEN / "cases.json").read_text())[case.name]
    return (GOLDEN.parents[2] / told["base"]).read_bytes()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_golden_delta_makes_the_file_it_always_made(case):
    told = json.loads((GOLDEN / "cases.json").read_text())[case.name]

    made = decode(base_of(case), case.read_bytes(), told["size_bytes"])

    assert (len(made), hashlib.sha256(made).hexdigest()) == (told["size_bytes"], told["sha256"])


def test_the_golden_deltas_use_all_that_the_format_has():
    spans = [
        span
        for case in CASES
        for span in unpack(case.read_bytes(), len(base_of(case)), 1 << 20).spans
    ]

    assert {span.predictor for span in spans} == set(Predictor)
    assert {span.element for span in spans} >= {"i1", "u1", "i4", "f4"}
    assert any(span.exponents for span in spans)
    assert any(span.has_columns for span in spans)
    assert any(span.outer > 1 for span in spans)
    assert any(span.scales is not None and span.scales.new_zero for span in spans)
