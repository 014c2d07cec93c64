"""Corrupted models against the real trial, with a champion at work beside it."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from agent.core.events import EngineFailed, EngineReady
from tests.agent.engine.mutants import (
    SAMPLES,
    Arena,
    Mutant,
    Tally,
    difference,
    mutants,
    sample,
    sample_manifest,
)

SEED = 4
RUNS = 12


@pytest.mark.parametrize("tflite", ["ai-edge-litert", "tflite-runtime"])
def test_no_corrupted_model_is_committed_or_disturbs_the_champion(
    tmp_path: Path, tflite: str
) -> None:
    tally = Tally()

    with Arena(tmp_path, ("onnxruntime", tflite)) as arena:
        for mutant in itertools.islice(mutants(SEED), RUNS):
            arena.face(mutant, tally)
        lives = arena.champion_lives

    assert tally.wrong == []
    assert tally.tried == RUNS and sum(tally.refused.values()) > RUNS / 3
    assert lives
    assert set(arena.answers) == {200} and arena.answers[200] > RUNS


def silent_flips(count: int) -> list[tuple[Mutant, bool]]:
    """Return one-byte flips that onnxruntime opens and runs, and whether answers are still right.

    As many of either kind.
    """
    whole, golden = sample("onnx"), np.load(SAMPLES / "digits-1/golden.npz")
    tolerance = sample_manifest().variants[0].golden_tolerance
    draw = random.Random(SEED)
    found: dict[bool, list[Mutant]] = {True: [], False: []}
    while min(map(len, found.values())) < count:
        data = bytearray(whole)
        at = draw.randrange(len(data))
        data[at] ^= draw.randint(1, 255)
        try:
            gap = difference("onnxruntime", bytes(data), golden)
        except Exception:
            continue
        right = gap["flips"] == 0 and gap["worst"] <= tolerance
        found[right].append(Mutant("onnx", f"byte at {at}", bytes(data)))
    return [(mutant, right) for right, some in found.items() for mutant in some[:count]]


def test_a_flipped_byte_that_changes_answers_in_silence_is_caught_by_the_golden_samples(
    tmp_path: Path,
) -> None:
    tally = Tally()
    ends = []

    with Arena(tmp_path, ("onnxruntime", "ai-edge-litert")) as arena:
        for mutant, right in silent_flips(3):
            ends.append((arena.face(mutant, tally), right))

    assert tally.wrong == []
    for end, right in ends:
        if right:
            assert isinstance(end, EngineReady)
        else:
            assert isinstance(end, EngineFailed)
            assert end.reason == "golden_mismatch"


def test_mutants_are_the_same_for_the_same_seed() -> None:
    one, two = (list(itertools.islice(mutants(7), 20)) for _ in range(2))

    assert one == two
    assert len({mutant.data for mutant in one}) == 20
