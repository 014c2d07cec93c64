"""`python -m agent.engine`: serve one generation of models, or tell which runtimes work.

The daemon starts this; see `agent.control` for the words it speaks. Beside `--control` it may
be given `--blame FD`, a file of 64 bytes that names the model being run, and `--regions FD`, a
socket for the shared memory of apps (`agent.regions`).
"""

import argparse
import importlib
import json
import os
import sys

import wire


def main() -> None:
    """Run as the arguments say, and exit."""
    # Before NumPy comes: its pool of threads would only take memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # The daemon has checked what it has an engine read; see ADR 14.
    wire.TRUSTING = True
    args = _parser().parse_args()
    if args.probe:
        from agent.engine.probe import probe

        sys.stdout.write(json.dumps(probe()) + "\n")
    elif args.probe_runtime is not None:
        from agent.engine.probe import probe_runtime

        sys.stdout.write(json.dumps(probe_runtime(args.probe_runtime)) + "\n")
    elif args.control is None:
        _parser().error("expected --control FD or --probe; the agent starts this program itself")
    else:
        _serve(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("agent.engine", description="Serves one generation of models.")
    parser.add_argument("--control", type=int, metavar="FD", help="Unix stream socket")
    parser.add_argument("--generation", type=int, default=0, metavar="N", help="for process lists")
    parser.add_argument("--tcp", type=int, metavar="FD", help="listening TCP socket")
    parser.add_argument("--unix", type=int, metavar="FD", help="listening Unix socket")
    parser.add_argument("--nice", type=int, default=0, metavar="N", help="while libraries load")
    parser.add_argument("--blame", type=int, metavar="FD", help="file that names the running model")
    parser.add_argument("--regions", type=int, metavar="FD", help="Unix stream socket")
    parser.add_argument("--probe", action="store_true", help="tell which runtimes work, as JSON")
    parser.add_argument("--probe-runtime", metavar="NAME", help=argparse.SUPPRESS)
    return parser


def _serve(args: argparse.Namespace) -> None:
    from agent import allocator

    allocator.settle()
    _import_without_tls("asyncio")
    _import_nicely(args.nice)
    import asyncio
    import socket

    from agent.engine.blame import Blame
    from agent.engine.generation import Generation
    from agent.engine.shared_memory import Regions
    from agent.regions import Passage

    try:
        control = socket.socket(fileno=args.control)
        listeners = [socket.socket(fileno=fd) for fd in (args.tcp, args.unix) if fd is not None]
        blame = Blame(args.blame)
        passage = None if args.regions is None else Passage(socket.socket(fileno=args.regions))
    except OSError as error:
        _parser().error(f"expected open descriptors: {error}")
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
