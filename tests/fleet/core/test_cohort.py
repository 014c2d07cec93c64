"""Which devices a rollout means, and its waves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.cohort import cut, facts_of, order, parse_waves, select
from fleet.core.target import parse_target
from fleet.core.views import Refusal

FLEET = {
    "cam-1": facts_of("cam-1", "aarch64", {"site": "berlin"}),
    "cam-2": facts_of("cam-2", "x86_64", {"site": "berlin", "frozen": "yes"}),
    "door-1": facts_of(
        "door-1",
        "aarch64",
        {"site": "paris", "arch": "fake", "frozen": "false", "room": "server room"},
    ),
}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("all", ["cam-1", "cam-2", "door-1"]),
        ("site=berlin", ["cam-1", "cam-2"]),
        ("site=berlin and arch=aarch64", ["cam-1"]),
        ("arch=aarch64", ["cam-1", "door-1"]),
        (" device = door-1 ", ["door-1"]),
        ("site=berlin or arch=aarch64", ["cam-1", "cam-2", "door-1"]),
        ("site=berlin and not arch=aarch64", ["cam-2"]),
        ("not (site=berlin and arch=aarch64)", ["cam-2", "door-1"]),
        ("site != berlin", ["door-1"]),
        ("device in (cam-1, door-1)", ["cam-1", "door-1"]),
        ("device not in (cam-1, door-1)", ["cam-2"]),
        ("frozen", ["cam-2"]),
        ("site=berlin and not frozen", ["cam-1"]),
        ("arch=aarch64 and not unheard-of", ["cam-1", "door-1"]),
        ('room="server room"', ["door-1"]),
        ("site=paris or site=berlin and frozen", ["cam-2", "door-1"]),
        ("(site=paris or site=berlin) and frozen", ["cam-2"]),
    ],
)
def test_targets_choose_by_labels_architecture_and_id(text: str, chosen: list[str]) -> None:
    assert select(parse_target(text), FLEET) == chosen


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("device=door-2", 404, "no device 'door-2'; nearest is door-1"),
        ("sit=berlin", 422, "--to: no device has a label 'sit'; nearest is site"),
        ("site=rome", 422, "--to: none of 3 devices has site=rome"),
    ],
)
def test_a_target_that_means_nobody_is_refused(text: str, status: int, error: str) -> None:
    with pytest.raises(Refusal) as refused:
        select(parse_target(text), FLEET)

    assert (refused.value.status, refused.value.error) == (status, error)
    assert refused.value.next_step == "fleet device list"


@pytest.mark.parametrize(
    ("text", "at", "expected"),
    [
        ("", 1, "`all`, a label such as site=berlin, `not` or `(`"),
        ("site=", 6, "a value"),
        ("=berlin", 1, "`all`, a label such as site=berlin, `not` or `(`"),
        ("a=b and", 8, "`all`, a label such as site=berlin, `not` or `(`"),
        ("a=b c=d", 5, "`and`, `or` or the end"),
        ("(a=b or c=d", 12, "`)`"),
        ("a in b", 6, "`(`"),
        ("a in (b", 8, "`,` or `)`"),
        ("a not b", 7, "`in`"),
        ("a=b!", 4, "a label, a value or a sign"),
        ("not " * 30 + "a", 85, "at most 20 levels"),
        ("(" * 1_000, 22, "at most 20 levels"),
    ],
)
def test_a_target_written_otherwise_is_refused_with_the_place(
    text: str, at: int, expected: str
) -> None:
    with pytest.raises(Refusal) as refused:
        parse_target(text)

    assert refused.value.error.startswith(f"--to: character {at}: expected {expected}, got ")


def test_a_target_of_endless_length_is_refused() -> None:
    with pytest.raises(Refusal, match="at most 20000 characters, got 30000"):
        parse_target("a" * 30_000)


WORDS = st.sampled_from(
    ["site", "arch", "=", "!=", "in", "not", "and", "or", "(", ")", ",", '"', "x"]
)


@given(st.lists(WORDS, max_size=12))
def test_whatever_is_written_is_a_target_or_refused(words: list[str]) -> None:
    try:
        target = parse_target(" ".join(words))
    except Refusal as refusal:
        assert refusal.status == 422
    else:
        assert target.matches({}) in (True, False)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("all", ()),
        ("site=berlin", (("site", "berlin"),)),
        ("site=berlin and arch=x", (("site", "berlin"), ("arch", "x"))),
        ("site=berlin or arch=x", None),
        ("not site=berlin", None),
        ("frozen", None),
    ],
)
def test_simple_targets_are_told_as_terms(
    text: str, terms: tuple[tuple[str, str], ...] | None
) -> None:
    assert parse_target(text).terms == terms


@pytest.mark.parametrize(
    ("shares", "devices", "counts"),
    [
        (("100%",), 5, (5,)),
        (("40%", "100%"), 5, (2, 5)),
        (("1", "25%", "100%"), 8, (1, 2, 8)),
        (("1%", "10%", "100%"), 5, (1, 1, 5)),
        (("30", "100%"), 5, (5, 5)),
    ],
)
def test_waves_are_cumulative(
    shares: tuple[str, ...], devices: int, counts: tuple[int, ...]
) -> None:
    assert parse_waves(shares, devices) == counts


@pytest.mark.parametrize(
    ("shares", "error"),
    [
        ((), "expected the last to be 100%, got"),
        (("50%",), "expected the last to be 100%, got"),
        (("50%", "20%", "100%"), "of 10 devices 20% are 2, fewer than the 5 before"),
        (("7", "50%", "100%"), "of 10 devices 50% are 5, fewer than the 7 before"),
        (("0", "100%"), "expected a count or 1% to 100%, got '0'"),
        (("110%", "100%"), "expected a count or 1% to 100%, got '110%'"),
        (("half", "100%"), "expected a count or 1% to 100%, got 'half'"),
        (("100%", "100%"), "expected ascending shares"),
    ],
)
def test_waves_that_make_no_sense_are_refused(shares: tuple[str, ...], error: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_waves(shares, 10)

    assert error in refused.value.error
    assert refused.value.status == 422


@given(st.sets(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1), st.integers(1, 99))
def test_waves_cut_the_fleet_without_loss_or_repeat(devices: set[str], percent: int) -> None:
    counts = parse_waves((f"{percent}%", "100%"), len(devices))

    waves = cut(order("r-1", devices), counts)

    assert sorted(id for wave in waves for id in wave) == sorted(devices)
    assert len(waves[0]) >= 1


def test_the_order_is_stable_and_differs_from_rollout_to_rollout() -> None:
    devices = [f"cam-{n}" for n in range(50)]

    assert order("r-1", devices) == order("r-1", reversed(devices))  # type: ignore[arg-type]
    assert order("r-1", devices) != order("r-2", devices)
