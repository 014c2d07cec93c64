"""`farflung-agent`: reads the configuration, puts the agent together, runs it."""

import argparse
import logging
import os
import sys
from pathlib import Path

from agent.config import AgentConfig, load_config
from agent.errors import DeviceError
from wire import VERSION


def main() -> int:
    """Run the command and return its exit status: 0 stopped as asked, 1 failed, 2 usage."""
    options = _options()
    _start_log(options.verbose)
    try:
        config = load_config(options.config)
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="farflung-agent", description="Keep the right model running on this device."
    )
    parser.add_argument("--config", type=Path, required=True, help="path of agent.toml")
    parser.add_argument(
        "--check", action="store_true", help="say whether this device could run models, and exit"
    )
    parser.add_argument("--verbose", action="store_true", help="log what engines say, too")
    parser.add_argument("--version", action="version", version=f"farflung {VERSION}")
    return parser.parse_args()


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

    able = capabilities(config.engine.runtimes)
    for name, version in able.runtimes.items():
        print(f"{name} {version}: ran a model")  # noqa: T201
    for name, why in able.unusable.items():
        print(f"{name}: unusable: {why}")  # noqa: T201
    if not able.runtimes:
        print("no runtime works; next: pip install 'farflung[onnx]' or 'farflung[tflite]'")  # noqa: T201
    return 0 if able.runtimes else 1


def _run(config: AgentConfig) -> int:
    from agent.daemon import Daemon

    run_dir = Path(os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or config.data_dir / "run")
    return Daemon(config, run_dir).run()


if __name__ == "__main__":
    sys.exit(main())
