"""Windows, health and events on their way out, and commands on their way in."""

from collections.abc import Mapping

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
from agent.core.jitter import draw
from agent.core.state import AgentState
from agent.core.turn import Turn
from wire.codec import DecodeError, validate
from wire.command import CAPTURE, VERBS, Command, CommandResult
from wire.telemetry import Health, ScoreWindow

FIRST_RESEND_S = 20.0
LAST_RESEND_S = 300.0
LINGER_S = 0.5
"""From an item to its batch: a window and the health of the same minute travel together."""
PAUSE_S = (0.2, 1.0)
"""Between two batches of a backlog, at random."""
CLOCK_STEP_S = 5.0
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
    if not state.online:
        return
    if state.send_at is None:
        if state.sequence > state.acked:
            state.send_at = now + LINGER_S
    elif now >= state.send_at:
        turn.do(SendOutbox(state.send_ahead))
        state.send_ahead = False
        state.send_at = now + _spread(state, 0.75, 1.25) * state.resend_wait
        state.resend_wait = min(state.resend_wait * 2, LAST_RESEND_S)


def _spread(state: AgentState, least: float, most: float) -> float:
    """Return a number in between: devices that woke together need not go on together."""
    state.sends += 1
    return least + (most - least) * draw(state.settings.boot, state.sends)


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
    _watch_clock(turn)
    _enqueue(
        turn,
        health.model_copy(
            update={
                "seq": state.sequence + 1,
                "engine_restarts": state.engine_restarts,
                "transfer_bytes": state.transfer_bytes,
                "chunks_bad": state.chunks_bad,
                "clock_stepped_s": round(state.clock_stepped_s, 1),
            }
        ),
    )


def _watch_clock(turn: Turn) -> None:
    """Tell of a wall clock that was set; one that is slewed moves less between two reports."""
    state, now = turn.state, turn.now
    before, state.clock_offset = state.clock_offset, now.wall - now.mono
    step = state.clock_offset - before if before is not None else 0.0
    if abs(step) > CLOCK_STEP_S:
        state.clock_stepped_s += abs(step)
        way = "ahead" if step > 0 else "back"
        turn.tell(
            "clock",
            f"the wall clock went {way} by {abs(step):.0f} s",
            counts={f"{way}_s": round(abs(step))},
        )


def on_dropped(turn: Turn, counts: Mapping[str, int]) -> None:
    """Queue what the outbox had to drop."""
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    turn.tell("dropped", f"no room in the outbox for {words}", counts=counts)


def tell_gap(turn: Turn, since: int) -> None:
    """Queue that the window is lost which was open when an earlier run ended uncleanly."""
    until = turn.state.settings.started
    text = "the agent ended uncleanly; what was counted since its last window is lost"
    turn.tell("gap", text, counts={"since": since, "until": until})


def _enqueue(turn: Turn, item: ScoreWindow | Health) -> None:
    turn.state.sequence = item.seq
    turn.do(Enqueue(item))
    if turn.state.stopping and turn.state.online:
        turn.do(SendOutbox())  # there is no later


def on_connected(turn: Turn) -> None:
    """Send what waited for the broker, soon."""
    state = turn.state
    state.resend_wait = FIRST_RESEND_S
    state.send_ahead = True
    state.send_at = None
    if state.sequence > state.acked:
        state.send_at = turn.now.mono + _spread(state, *PAUSE_S)


def on_ack(turn: Turn, sequence: int) -> None:
    """Forget what the controller committed, and go on with the rest after a while."""
    state = turn.state
    if not state.acked < sequence <= state.sequence:
        return
    state.acked = sequence
    state.resend_wait = FIRST_RESEND_S
    state.send_ahead = True
    state.send_at = None
    turn.do(Forget(sequence))
    if state.sequence > sequence:
        state.send_at = turn.now.mono + _spread(state, *PAUSE_S)


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
