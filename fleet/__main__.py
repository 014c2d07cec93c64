"""The `fleet` command: the tree of its nouns, and the one place that ends it in words."""

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from fleet.cli.group import LazyGroup
from fleet.cli.session import DEFAULT_CONTROLLER, DONE, FAILED, INTERRUPTED, USAGE, Session
from fleet.core.errors import FleetError
from wire import VERSION

COMMANDS = {
    "model": ("fleet.cli.model:model", "Releases: push, list, show."),
    "device": ("fleet.cli.device:device", "Devices: list, show, config, cmd."),
    "authority": ("fleet.cli.authority:authority", "The fleet's certificates: init, show."),
    "rollout": ("fleet.cli.rollout:rollout", "Rollouts: start, status, list, abort."),
    "samples": (
        "fleet.cli.samples:samples",
        "Captured inputs: request, list, show, fetch, delete.",
    ),
    "telemetry": ("fleet.cli.telemetry:telemetry", "What devices counted, as files: export."),
    "alerts": ("fleet.cli.alerts:alerts", "What is wrong: list, show, ack, silence, rules, check."),
    "top": ("fleet.cli.top:top", "The whole fleet at a glance, live."),
    "monitoring": ("fleet.cli.monitoring:monitoring", "Files for Prometheus and Grafana: write."),
    "events": ("fleet.cli.events:events", "What happened lately."),
    "backup": ("fleet.cli.backup:backup", "The controller's data in one file: write, verify."),
    "restore": ("fleet.cli.backup:restore", "A data directory from such a file."),
    "serve": ("fleet.cli.serve:serve", "Run the controller."),
    "demo": ("fleet.cli.demo:demo", "The whole loop on this machine, from push to accuracy."),
}


class Tree(LazyGroup):
    """The root: whatever goes wrong below ends in a line or two and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command and end the process."""
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except Exception as error:
            code = _explain(error)
        sys.exit(code if isinstance(code, int) else DONE)


def _explain(error: Exception) -> int:
    """Say on stderr what went wrong and what to do next; return the exit code."""
    match error:
        case click.Abort():
            _say("interrupted")
            return INTERRUPTED
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return USAGE
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "fleet"
            _say(error.format_message().rstrip("."), f"{path} --help")
            return USAGE
        case click.ClickException():
            _say(error.format_message())
            return error.exit_code
        case _ if os.environ.get("FARFLUNG_DEBUG") == "1":
            raise error
        case FleetError():
            _say(error.error, error.next_step or "fleet --help")
            return error.exit_code
        case BrokenPipeError():
            # The reader has seen enough; the interpreter must not try to flush the rest.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            _say(f"{where}{error.strerror or error}")
            return FAILED
        case _:
            _say(
                f"a fault of ours: {type(error).__name__}: {error}",
                "the same with FARFLUNG_DEBUG=1 shows where; please report it",
            )
            return FAILED


def _say(error: str, next_step: str = "") -> None:
    click.echo(f"error: {error}", err=True)
    if next_step:
        click.echo(f"next: {next_step}", err=True)


@click.group(cls=Tree, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--controller",
    metavar="URL",
    envvar="FARFLUNG_CONTROLLER",
    default=DEFAULT_CONTROLLER,
    show_default=True,
    help="URL of the controller; also FARFLUNG_CONTROLLER.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--no-color", is_flag=True, help="Plain text.")
@click.version_option(VERSION, prog_name="fleet")
@click.pass_context
def fleet(ctx: click.Context, controller: str, as_json: bool, no_color: bool) -> None:
    """Put models on far-flung devices and keep them good.

    stdout is the answer, stderr the conversation. Exit codes: 0 done, 1 failed or aborted,
    2 usage, 3 still going at --timeout.
    """
    ctx.obj = Session(controller=controller, json=as_json, color=not no_color)


def main() -> NoReturn:
    """Run the `fleet` command."""
    fleet.main(prog_name="fleet")


if __name__ == "__main__":
    main()
