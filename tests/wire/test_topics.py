import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from tests.wire.test_ids import IDS
from wire.ids import BUCKETS, bucket_of, digest_of
from wire.topics import (
    ROOT,
    RULES,
    Kind,
    Topic,
    artifact_filter,
    build,
    controller_filters,
    device_base,
    device_filters,
    own_filter,
    parse,
)

DIGESTS = st.binary(max_size=8).map(digest_of)
ARTIFACTS = st.builds(Topic, st.sampled_from([Kind.INDEX, Kind.DATA]), DIGESTS)
OWN = st.builds(
    lambda kind, device, index: Topic(kind, device, id=index),
    st.sampled_from([Kind.OWN_INDEX, Kind.OWN_DATA]), IDS, DIGESTS,
)  # fmt: skip
ACTS = st.builds(Topic, st.sampled_from([Kind.COMMAND, Kind.RESULT]), IDS, IDS, IDS)
STATES = st.builds(
    Topic, st.sampled_from(sorted(set(Kind) - {
        Kind.INDEX, Kind.DATA, Kind.OWN_INDEX, Kind.OWN_DATA, Kind.COMMAND, Kind.RESULT,
        Kind.ALERTS,
    })),
    IDS,
)  # fmt: skip
TOPICS = ARTIFACTS | OWN | ACTS | STATES | st.just(Topic(Kind.ALERTS, ""))
ROOTS = st.sampled_from([ROOT, "f", "site-7"])


@given(TOPICS, ROOTS)
def test_a_built_topic_parses_to_what_it_was_built_from(topic, root):
    assert parse(build(topic, root), root) == topic


@given(st.lists(st.sampled_from(
    ["farflung", "a", "d", "00", bucket_of("cam-1"), "cam-1", "desired", "t", "health", "cmd",
     "ping", "result", "index", digest_of(b"")[7:], "", "+", "#"]), max_size=9).map("/".join)
    | st.text(max_size=60))  # fmt: skip
def test_a_parsed_topic_builds_to_the_very_text_that_was_parsed(text):
    topic = parse(text)

    assert topic is None or build(topic) == text


@given(TOPICS, ROOTS)
def test_every_topic_fits_the_broker_and_its_rule(topic, root):
    text = build(topic, root)
    levels = text.split("/")[1:]
    pattern = RULES[topic.kind].pattern.split("/")

    assert len(text.split("/")) <= 8
    assert len(levels) == len(pattern)
    assert all(p.startswith("{") or p == level for p, level in zip(pattern, levels, strict=True))


@given(TOPICS, IDS)
def test_a_device_hears_its_own_topics_and_no_other_device(topic, device):
    heard = any(topic_matches_sub(each, build(topic)) for each in device_filters(device))
    for_devices = {Kind.DESIRED, Kind.ACK, Kind.COMMAND, Kind.STATUS}

    assert heard == (topic.owner == device and topic.kind in for_devices)


@given(TOPICS)
def test_the_controller_hears_all_that_devices_write_and_nothing_of_its_own(topic):
    heard = any(topic_matches_sub(each, build(topic)) for each in controller_filters())

    assert heard == (RULES[topic.kind].writer == "device")


@given(ARTIFACTS, DIGESTS)
def test_a_device_hears_the_transfer_it_asked_for_alone(topic, digest):
    assert topic_matches_sub(artifact_filter(digest), build(topic)) == (topic.owner == digest)


@given(OWN | ARTIFACTS, IDS, DIGESTS)
def test_a_device_hears_its_own_copy_of_a_transfer_and_no_other_devices(topic, device, digest):
    heard = topic_matches_sub(own_filter(device, digest), build(topic))

    assert heard == (topic.owner == device and topic.id == digest)


def test_a_device_on_a_bucket_that_is_not_its_own_is_none_of_ours():
    right = bucket_of("cam-1")
    for number in range(BUCKETS):
        text = f"farflung/d/{number:02x}/cam-1/status"
        assert (parse(text) is not None) == (f"{number:02x}" == right)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "farflung",
        "farflung/",
        "other/" + device_base("cam-1").partition("/")[2] + "/status",
        device_base("cam-1"),
        device_base("cam-1") + "/",
        device_base("cam-1") + "/status/",
        device_base("cam-1") + "/unheard",
        device_base("cam-1") + "/t/desired",
        device_base("cam-1") + "/cmd/ping",
        device_base("cam-1") + "/cmd/PING/1",
        device_base("cam-1") + "/cmd/ping/1/results",
        f"farflung/a/{digest_of(b'')}/data",
        f"farflung/a/{'g' * 64}/data",
        f"farflung/a/{digest_of(b'')[7:]}/desired",
    ],
)
def test_what_is_not_in_the_table_is_none_of_ours(text):
    assert parse(text) is None


def test_state_is_retained_and_nothing_else_is():
    assert {kind for kind, rule in RULES.items() if rule.retain} == {
        Kind.ALERTS, Kind.DESIRED, Kind.REPORTED, Kind.STATUS,
    }  # fmt: skip
