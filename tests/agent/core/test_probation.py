"""The verdict on a challenger: what it is worth, measured on seeded streams of pairs."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control import Tally
from agent.core.probation import evidence, finding, finding_unlabelled, judge, upper_rate
from wire.twin import Finding, Phase, Probation, Reason

POLICY = Probation(labelled_pairs=300, margin_bp=100, evidence=20, deadline_s=600)


def tally(n: int, worse: int, better: int, errors: int = 0) -> Tally:
    return Tally(
        model="digits",
        challenger="sha256:" + "0" * 64,
        pairs=n,
        disagreements=worse + better,
        labelled=n,
        worse=worse,
        better=better,
        errors=errors,
    )


def refused_share(worse: float, better: float, pairs: int, looks: int, runs: int) -> float:
    """Return how often a stream of pairs is refused when looked at after every `looks` pairs."""
    source = random.Random(7)
    refused = 0
    for _ in range(runs):
        b = c = 0
        for n in range(1, pairs + 1):
            draw = source.random()
            b += draw < worse
            c += worse <= draw < worse + better
            if n % looks == 0 and evidence(b, c, n - b - c, 0.01) >= 20:
                refused += 1
                break
    return refused / runs


@given(
    worse=st.integers(0, 40),
    better=st.integers(0, 40),
    ties=st.integers(0, 400),
    margin=st.floats(0, 0.2),
)
def test_the_evidence_is_the_mean_of_the_products_of_its_bets(
    worse: int, better: int, ties: int, margin: float
) -> None:
    products = []
    for i in range(20):
        bet = (i + 0.5) / 20 / (1 + margin)
        won, tied, lost = 1 + bet * (1 - margin), 1 - bet * margin, 1 - bet * (1 + margin)
        products.append(won**worse * tied**ties * lost**better)

    assert evidence(worse, better, ties, margin) == pytest.approx(sum(products) / 20, rel=1e-6)


def test_no_data_is_no_evidence() -> None:
    assert evidence(0, 0, 0, 0.01) == pytest.approx(1.0)


def test_evidence_stays_a_number_however_much_there_is() -> None:
    assert math.isfinite(evidence(1_000_000, 0, 0, 0.01))


def test_looking_after_every_pair_refuses_hardly_any_release_that_is_as_good() -> None:
    assert refused_share(0.03, 0.03, pairs=1000, looks=1, runs=400) <= 0.05


def test_a_release_worse_by_just_the_margin_is_refused_in_at_most_one_of_twenty() -> None:
    assert refused_share(0.035, 0.025, pairs=1000, looks=5, runs=400) <= 0.05


def test_five_points_are_mostly_seen_within_three_hundred_pairs() -> None:
    assert refused_share(0.055, 0.005, pairs=300, looks=5, runs=400) >= 0.7


def test_seven_points_are_nearly_always_seen_within_three_hundred_pairs() -> None:
    assert refused_share(0.075, 0.005, pairs=300, looks=5, runs=400) >= 0.9


def test_a_refusal_says_the_figures() -> None:
    verdict = judge(POLICY, tally(150, 27, 6), 10)

    assert verdict is not None
    assert (verdict.phase, verdict.reason) == (Phase.ROLLED_BACK, Reason.WORSE_THAN_CHAMPION)
    assert verdict.detail.startswith("27 worse, 6 better of 150 labelled, E = ")


def test_enough_pairs_without_evidence_commit() -> None:
    verdict = judge(POLICY, tally(300, 5, 4), 10)

    assert verdict is not None
    assert verdict.phase is Phase.COMMITTED


def test_too_few_pairs_decide_nothing_before_the_deadline() -> None:
    assert judge(POLICY, tally(299, 5, 4), 599) is None


@pytest.mark.parametrize(
    ("at_deadline", "phase"), [("refuse", Phase.TIMED_OUT), ("commit", Phase.COMMITTED)]
)
def test_the_deadline_ends_it_as_the_policy_says(at_deadline: str, phase: Phase) -> None:
    policy = POLICY.model_copy(update={"at_deadline": at_deadline})

    verdict = judge(policy, tally(20, 0, 0), 600)

    assert verdict is not None
    assert verdict.phase is phase


def test_answers_that_hardly_differ_commit_without_a_label() -> None:
    unlabelled = Tally(model="m", challenger="c", pairs=2000, disagreements=5)

    verdict = judge(POLICY, unlabelled, 10)

    assert verdict is not None
    assert verdict.phase is Phase.COMMITTED
    assert "without a label" in verdict.detail


def test_answers_that_differ_need_labels() -> None:
    unlabelled = Tally(model="m", challenger="c", pairs=2000, disagreements=40)

    assert judge(POLICY, unlabelled, 10) is None


def test_a_challenger_that_cannot_answer_is_refused() -> None:
    verdict = judge(POLICY, tally(100, 0, 0, errors=3), 10)

    assert verdict is not None
    assert (verdict.phase, verdict.reason) == (Phase.ROLLED_BACK, Reason.CRASHED)


def test_no_data_bounds_no_rate() -> None:
    assert upper_rate(0, 0) == 1.0
    assert upper_rate(0, 1000) < 0.005


def costing(champion_ms: float, challenger_ms: float, rows: int = 50) -> Tally:
    return Tally(
        model="digits",
        challenger="sha256:" + "0" * 64,
        pairs=rows,
        champion_rows=rows,
        champion_cpu_us=round(1000 * champion_ms * rows),
        challenger_rows=rows,
        challenger_cpu_us=round(1000 * challenger_ms * rows),
    )


def test_a_challenger_that_costs_several_times_the_champion_is_refused_with_both_figures() -> None:
    verdict = judge(POLICY, costing(2.0, 6.5), 10)

    assert verdict is not None
    assert (verdict.phase, verdict.reason) == (Phase.ROLLED_BACK, Reason.TOO_SLOW)
    assert verdict.detail == (
        "6.50 ms of processor time an input, the champion takes 2.00 ms: 325%, refused above 300%"
    )


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        (POLICY, costing(2.0, 5.9)),
        (POLICY, costing(0.02, 0.9)),
        (POLICY, costing(2.0, 60.0, rows=19)),
        (POLICY, costing(0.0, 0.0)),
        (POLICY.model_copy(update={"cpu_percent": 0}), costing(2.0, 60.0)),
        (POLICY.model_copy(update={"cpu_percent": 5000}), costing(2.0, 60.0)),
    ],
    ids=["within", "under a millisecond", "too few", "no cost", "no limit", "wide limit"],
)
def test_cost_within_the_limit_or_hardly_known_refuses_nobody(
    policy: Probation, found: Tally
) -> None:
    assert judge(policy, found, 10) is None


def test_the_finding_is_taken_at_a_number_of_labels_whatever_they_say() -> None:
    policy = Probation(labelled_pairs=300, finding_pairs=100)

    assert finding(policy, tally(99, 40, 0)) is None
    assert finding(policy, tally(104, 4, 2)) == Finding(pairs=104, worse=4, better=2)
    assert finding(policy, tally(100, 0, 0)) == Finding(pairs=100)


def test_a_shorter_probation_has_its_finding_at_its_end() -> None:
    policy = Probation(labelled_pairs=50, finding_pairs=100)

    assert finding(policy, tally(49, 1, 0)) is None
    assert finding(policy, tally(50, 1, 0)) == Finding(pairs=50, worse=1)
    assert finding(Probation(finding_pairs=0), tally(500, 9, 9)) is None


def test_a_commit_without_labels_has_the_worst_case_for_its_finding() -> None:
    unlabelled = Tally(model="m", challenger="c", pairs=2000, disagreements=5)

    verdict = judge(POLICY, unlabelled, 1.0)

    assert verdict is not None and verdict.unlabelled
    assert finding_unlabelled(POLICY, unlabelled) == Finding(pairs=2000, worse=5, labelled=False)
