"""The shared memory that apps registered, held for engines to come."""

import contextlib
import os
import socket
import threading

from agent.regions import MAX_REGIONS, Forget, Keep, Noted, Passage


class Regions:
    """Descriptors that outlive the engines that opened them, at most 64. For many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Keep, int]] = {}
        self._passages: list[Passage] = []

    def join(self) -> tuple[Passage, socket.socket]:
        """Return our end and that of a new engine, in which all that is held waits already."""
        ours, theirs = socket.socketpair()
        passage = Passage(ours)
        with self._lock:
            for keep, fd in self._kept.values():
                _send(passage, keep, fd)
            self._passages.append(passage)
        return passage, theirs

    def hear(self, passage: Passage) -> bool:
        """Do what an engine says and tell the others; False when it says no more."""
        try:
            for word, fd in passage.receive():
                with self._lock:
                    self._do(passage, word, fd)
        except (EOFError, ValueError, OSError):
            return False
        return True

    def leave(self, passage: Passage) -> None:
        """Take the last words of an engine that has ended."""
        self.hear(passage)
        with self._lock:
            self._passages.remove(passage)
            passage.close()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            while self._kept:
                os.close(self._kept.popitem()[1][1])

    def _do(self, passage: Passage, word: Keep | Forget | Noted, fd: int | None) -> None:
        match word:
            case Keep(name):
                assert fd is not None
                self._forget(name)
                if len(self._kept) >= MAX_REGIONS:
                    os.close(fd)  # the engine does not count as it should
                    return
                self._kept[name] = (word, fd)
            case Forget(name):
                self._forget(name)
            case Noted():
                return
        for other in self._passages:
            if other is not passage:
                _send(other, word, fd)
        _send(passage, Noted())

    def _forget(self, name: str) -> None:
        if name in self._kept:
            os.close(self._kept.pop(name)[1])


def _send(passage: Passage, word: Keep | Forget | Noted, fd: int | None = None) -> None:
    # An engine that is gone is told nothing; one that does not read hangs up when it reads again.
    with contextlib.suppress(OSError):
        passage.send(word, fd)
