import os

from agent.engine.blame import Blame


def test_of_several_running_models_the_latest_is_named() -> None:
    fd = os.memfd_create("blame")
    blame = Blame(fd)
    seen = []

    blame.begin(b"slow")
    blame.begin(b"quick")
    seen.append(os.pread(fd, 64, 0).rstrip(b"\0"))
    blame.end(b"quick")
    seen.append(os.pread(fd, 64, 0).rstrip(b"\0"))
    blame.end(b"slow")
    seen.append(os.pread(fd, 64, 0))
    os.close(fd)

    assert seen == [b"quick", b"slow", bytes(64)]
