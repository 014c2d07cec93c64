"""`python -m agent.engine`: serve one generation of models, or tell which runtimes work.

The daemon starts this; see `agent.control` for the words it speaks. Beside `--control` it may
be given `--blame FD`, a file of 64 bytes that names the model being run, and `--regions FD`, a
socket for the shared memory of apps (`agent.regions`).
"""

import getopt
import importlib
import json
import os
import sys
from typing import NoReturn

import wire

_KNOWN = [
    "probe",
    "probe-runtime=",
    "control=",
    "generation=",
    "tcp=",
    "unix=",
    "nice=",
    "blame=",
    "regions=",
]
_USAGE = """\
usage: python -m agent.engine --probe
       python -m agent.engine --control FD [--generation N] [--tcp FD] [--unix FD] [--nice N]
                              [--blame FD] [--regions FD]"""


def main() -> None:
    """Run as the arguments say, and exit."""
    # Before NumPy comes: its pool of threads would only take memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # The daemon has checked what it has an engine read; see ADR 14.
    wire.TRUSTING = True
    given = _arguments()
    if "--probe" in given:
        from agent.engine.probe import probe

        sys.stdout.write(json.dumps(probe()) + "\n")
    elif "--probe-runtime" in given:
        from agent.engine.probe import probe_runtime

        sys.stdout.write(json.dumps(probe_runtime(given["--probe-runtime"])) + "\n")
    elif "--control" not in given:
        _refuse("expected --control FD or --probe; the agent starts this program itself")
    else:
        _serve({name: _number(name, text) for name, text in given.items()})


def _arguments() -> dict[str, str]:
    """Return what was given by name. By getopt: argparse takes 1 MB for as long as we run."""
    try:
        given, rest = getopt.getopt(sys.argv[1:], "", _KNOWN)
    except getopt.GetoptError as error:
        _refuse(str(error))
    if rest:
        _refuse(f"expected names and their values alone, got {rest[0]!r}")
    return dict(given)


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        _refuse(f"{name}: expected a number, got {text!r}")


def _refuse(why: str) -> NoReturn:
    sys.stderr.write(f"{_USAGE}\nagent.engine: error: {why}\n")
    sys.exit(2)


def _serve(given: dict[str, int]) -> None:
    from agent import allocator

    allocator.settle()
    _import_without_tls("asyncio")
    _import_nicely(given.get("--nice", 0))
    import asyncio
    import socket

    from agent.engine.blame import Blame
    from agent.engine.generation import Generation
    from agent.engine.shared_memory import Regions
    from agent.regions import Passage

    try:
        control = socket.socket(fileno=given["--control"])
        listeners = [socket.socket(fileno=given[at]) for at in ("--tcp", "--unix") if at in given]
        blame = Blame(given.get("--blame"))
        regions = given.get("--regions")
        passage = None if regions is None else Passage(socket.socket(fileno=regions))
    except OSError as error:
        _refuse(f"expected open descriptors: {error}")
    code = asyncio.run(Generation(control, listeners, blame, Regions(passage)).run())
    # A thread may still be inside a model that does not return.
    os._exit(code)


def _import_without_tls(name: str) -> None:
    """Import what does without `ssl` where Python was built without it.

    Nobody speaks TLS with an engine, and OpenSSL takes 3 MB.
    """
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        importlib.import_module(name)
    finally:
        del sys.modules["ssl"]


def _import_nicely(nice: int) -> None:
    """Import what takes long in a thread of low priority: this one could not get its own back."""
    import threading

    from agent.engine import priority

    def work() -> None:
        priority.lower(nice, threads=1)
        importlib.import_module("agent.engine.generation")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
