"""Sockets that read ahead."""

import select
import socket
import threading
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.shell.link import TOGETHER, Buffered, Client
from tests.brokers import start_mosquitto


def test_a_socket_that_reads_ahead_says_what_it_holds_and_gives_all_of_it_in_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        buffered = Buffered(theirs)
        ours.sendall(b"one, two, three")

        first = buffered.recv(1)

        assert first == b"o"
        assert buffered.pending() == len("ne, two, three")
        assert not select.select([buffered], [], [], 0)[0], "the rest is with us, not in the kernel"
        assert buffered.recv(4) + buffered.recv(1000) == b"ne, two, three"
        assert buffered.pending() == 0
        with pytest.raises(BlockingIOError):
            buffered.recv(1)


def test_the_end_of_a_connection_comes_after_all_that_was_sent() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        buffered = Buffered(theirs)
        ours.sendall(b"last words")
        ours.close()

        heard = [buffered.recv(5), buffered.recv(70_000), buffered.recv(5), buffered.recv(70_000)]

        assert heard == [b"last ", b"words", b"", b""]


def test_small_and_large_messages_that_arrive_together_are_all_heard_in_order(
    tmp_path: Path,
) -> None:
    bodies = [bytes([n % 256]) * (n * n) for n in range(10 * TOGETHER)]
    heard: list[bytes] = []
    ready, whole = threading.Event(), threading.Event()
    listener = Client()
    speaker = mqtt.Client(CallbackAPIVersion.VERSION2)

    def hear(client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        heard.append(bytes(message.payload))
        if len(heard) == len(bodies):
            whole.set()

    listener.on_message = hear
    listener.on_subscribe = lambda *_: ready.set()
    with start_mosquitto(tmp_path) as broker:
        for each in (listener, speaker):
            each.connect("127.0.0.1", broker.port)
            each.loop_start()
        listener.subscribe("all", qos=1)
        try:
            assert ready.wait(10)
            for body in bodies:
                speaker.publish("all", body, qos=1)
            whole.wait(20)
        finally:
            for each in (listener, speaker):
                each.disconnect()
                each.loop_stop()

    assert heard == bodies
