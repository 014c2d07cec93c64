"""`farflung-agent`: reads the configuration, puts the agent together, runs it.

`farflung-agent import` brings it a release in a file.
"""

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path

from agent import allocator
from agent.config import AgentConfig, engine_environ, load_config
from agent.errors import DeviceError
from wire import VERSION

TAKEN_UP_S = 20.0
"""A running agent is heard to look within this time; it may be waiting for a slow disk."""


def main() -> int:
    """Run the command and return its exit status: 0 stopped as asked, 1 failed, 2 usage."""
    allocator.settle()
    arguments = sys.argv[1:]
    importing = arguments[:1] == ["import"]
    options = _import_options(arguments[1:]) if importing else _options(arguments)
    _start_log(options.verbose)
    try:
        config = load_config(options.config)
        if importing:
            return _import(config, options.bundle, install=options.install)
        return _check(config) if options.check else _run(config)
    except DeviceError as error:
        print(f"farflung-agent: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except Exception as error:
        if os.environ.get("FARFLUNG_DEBUG"):
            raise
        print(  # noqa: T201
            f"farflung-agent: unexpected {type(error).__name__}: {error}; "
            f"set FARFLUNG_DEBUG=1 to see where",
            file=sys.stderr,
        )
        return 1


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = _parser(
        "farflung-agent",
        "Keep the right model running on this device.",
        "farflung-agent import --help: a release from a file",
    )
    parser.add_argument(
        "--check", action="store_true", help="say whether this device could run models, and exit"
    )
    parser.add_argument("--version", action="version", version=f"farflung {VERSION}")
    return parser.parse_args(arguments)


def _import_options(arguments: list[str]) -> argparse.Namespace:
    parser = _parser(
        "farflung-agent import",
        "Bring this device a release in a file, such as one on a USB stick. "
        "It takes the release when the controller asks for it, and fetches nothing then.",
        "The file is made by: fleet model export",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="path of the file")
    parser.add_argument(
        "--install", action="store_true",
        help="take the release now, without the controller; for: fleet model export --install",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description, epilog=epilog)
    parser.add_argument("--config", type=Path, required=True, help="path of agent.toml")
    parser.add_argument("--verbose", action="store_true", help="log what engines say, too")
    return parser


def _start_log(verbose: bool) -> None:
    # The journal adds its own times.
    stamp = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format=f"{stamp}%(levelname)s %(message)s",
        stream=sys.stderr,
    )


def _check(config: AgentConfig) -> int:
    from agent.shell.probe import capabilities

    able = capabilities(engine_environ(config.engine))
    for name, version in able.runtimes.items():
        print(f"{name} {version}: ran a model")  # noqa: T201
    for name, version in (able.libraries or {}).items():
        print(f"{name} {version}: works")  # noqa: T201
    for name, why in able.unusable.items():
        print(f"{name}: unusable: {why}")  # noqa: T201
    if not able.runtimes:
        print("no runtime works; next: pip install 'farflung[onnx]' or 'farflung[tflite]'")  # noqa: T201
    return 0 if able.runtimes else 1


def _import(config: AgentConfig, path: Path, *, install: bool) -> int:
    from agent.shell.bundle import BundleError, read_seal, unpack
    from agent.shell.imports import act_as_owner, hand_over, tell_agent
    from wire.seal import Verifier

    try:
        bundle = path.open("rb")
    except OSError as error:
        raise DeviceError(f"bundle: cannot read {path}: {error.strerror}") from None
    with bundle:
        act_as_owner(config.data_dir)
        seal, statement = read_seal(bundle, Verifier(config.controller.public_keys), config.device)
        if install and not seal.install:
            raise BundleError("expected one to be installed, got one that brings files alone")
        ready = hand_over(
            config.data_dir,
            seal,
            statement,
            install=install,
            reserve_bytes=config.transfer.reserve_bytes,
            unpack=lambda into: unpack(bundle, seal, into),
        )
    release = seal.release
    print(f"{release.ref}: {len(seal.files)} files, {seal.file_bytes} bytes, all as sealed")  # noqa: T201
    pid = tell_agent(config.data_dir)
    if pid is None:
        print("no agent is running; the next one takes them up")  # noqa: T201
        return 0
    deadline = time.monotonic() + TAKEN_UP_S
    while ready.exists():
        if time.monotonic() > deadline:
            raise DeviceError(
                f"import: expected the agent (process {pid}) to take the files up within "
                f"{TAKEN_UP_S:.0f} s, and it did not; it does when it is started again"
            )
        time.sleep(0.05)
    print(f"the agent (process {pid}) has taken them up")  # noqa: T201
    return 0


def _run(config: AgentConfig) -> int:
    from agent.daemon import Daemon
    from agent.shell.imports import NEWS

    # News that comes before the daemon listens is harmless: it looks once it does.
    signal.signal(NEWS, signal.SIG_IGN)
    run_dir = Path(os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or config.data_dir / "run")
    return Daemon(config, run_dir).run()


if __name__ == "__main__":
    sys.exit(main())
