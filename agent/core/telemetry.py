"""Windows and health reports on their way out, and commands on their way in."""

from agent.control import Window
from agent.core import serve
from agent.core.actions import (
    AskScores,
    Enqueue,
    Forget,
    PublishResult,
    SampleHealth,
    Say,
    SendOutbox,
)
from agent.core.turn import Turn
from wire.codec import DecodeError, validate
from wire.command import CAPTURE, VERBS, Command, CommandResult
from wire.telemetry import Health, ScoreWindow

FIRST_RESEND_S = 20.0
LAST_RESEND_S = 300.0
COMMANDS_REMEMBERED = 64
REFUSALS_KEPT = 8


def on_time(turn: Turn) -> None:
    """Ask for what is due: windows, health, and another try at what nobody acknowledged."""
    state, now = turn.state, turn.now.mono
    if now >= state.next_window:
        state.next_window = now + state.settings.window_s
        engine = state.generation("serving")
        if engine is not None:
            turn.do(AskScores(engine.number, windows=True))
    if now >= state.next_health:
        state.next_health = now + state.settings.health_s
        turn.do(SampleHealth())
    if state.online and state.resend_at is not None and now >= state.resend_at:
        state.resend_wait = min(state.resend_wait * 2, LAST_RESEND_S)
        state.resend_at = now + state.resend_wait
        turn.do(SendOutbox())


def on_windows(turn: Turn, windows: tuple[Window, ...]) -> None:
    """Queue counts from an engine, each under the next sequence number."""
    settings = turn.state.settings
    for window in windows:
        sequence = turn.state.sequence + 1
        try:
            item = validate(
                ScoreWindow,
                {
                    **window.counts,
                    "latency": {"bins": window.counts.get("latency", {})},
                    "device": settings.device,
                    "boot": settings.boot,
                    "seq": sequence,
                    "model": window.model,
                    "version": window.version,
                    "manifest": window.manifest,
                    "variant": window.variant,
                    "start": window.start,
                    "end": window.end,
                },
            )
        except DecodeError as error:
            turn.do(Say(f"an engine's window was dropped: {error}", "error"))
            continue
        _enqueue(turn, item)


def on_health(turn: Turn, health: Health) -> None:
    """Queue a health report, with what only the core counts."""
    state = turn.state
    _enqueue(
        turn,
        health.model_copy(
            update={
                "seq": state.sequence + 1,
                "engine_restarts": state.engine_restarts,
                "transfer_bytes": state.transfer_bytes,
                "chunks_bad": state.chunks_bad,
            }
        ),
    )


def _enqueue(turn: Turn, item: ScoreWindow | Health) -> None:
    state = turn.state
    state.sequence = item.seq
    turn.do(Enqueue(item))
    if state.online:
        if state.resend_at is None:
            turn.do(SendOutbox())
        _expect_ack(turn)


def _expect_ack(turn: Turn) -> None:
    if turn.state.resend_at is None:
        turn.state.resend_at = turn.now.mono + turn.state.resend_wait


def on_connected(turn: Turn) -> None:
    """Send what waited for the broker."""
    state = turn.state
    state.resend_wait = FIRST_RESEND_S
    state.resend_at = None
    if state.sequence > state.acked:
        turn.do(SendOutbox())
        _expect_ack(turn)


def on_ack(turn: Turn, sequence: int) -> None:
    """Forget what the controller committed, and go on with the rest."""
    state = turn.state
    if not state.acked < sequence <= state.sequence:
        return
    state.acked = sequence
    state.resend_wait = FIRST_RESEND_S
    state.resend_at = None
    turn.do(Forget(sequence))
    if state.sequence > sequence and state.online:
        turn.do(SendOutbox())
        _expect_ack(turn)


def on_command(turn: Turn, command: Command) -> None:
    """Obey a command at most once, or say why not."""
    state = turn.state
    if command.id in state.journal.commands:
        return
    remembered = (*state.journal.commands, command.id)[-COMMANDS_REMEMBERED:]
    turn.record(commands=remembered)
    late = turn.now.wall - command.expires_at
    if late > 0:
        _answer(turn, command, "refused", f"expired {late:.0f} s ago by this device's clock")
    elif command.verb == "ping":
        uptime = int(turn.now.wall) - state.settings.started
        _answer(turn, command, "done", f"farflung {state.settings.version}, up {uptime} s")
    elif command.verb == "restart-engine":
        if state.journal.champions:
            serve.restart(turn)
            _answer(turn, command, "done", "a fresh engine takes over when it is ready")
        else:
            _answer(turn, command, "failed", "no model is installed, so no engine runs")
    elif command.verb == CAPTURE:
        from agent.core import capture  # only where somebody asks

        _answer(turn, command, *capture.obey(turn, command))
    else:
        known = ", ".join((*VERBS, CAPTURE))
        _answer(turn, command, "refused", f"expected one of {known}, got {command.verb}")
    turn.say(f"command {command.id}: {command.verb}")


def _answer(turn: Turn, command: Command, outcome: str, detail: str) -> None:
    result = CommandResult.model_validate(
        {"device": command.device, "id": command.id, "outcome": outcome, "detail": detail}
    )
    turn.do(PublishResult(command.verb, result))


def refuse(turn: Turn, text: str) -> None:
    """Keep and report what was not followed. A flood of the same is kept once."""
    state = turn.state
    if text in state.refusals:
        return
    state.refusals = (*state.refusals, text[:200])[-REFUSALS_KEPT:]
    state.progress_wanted = True
    turn.say(f"not followed: {text}", "warning")
