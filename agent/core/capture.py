"""Whether an order to capture inputs is followed: only with this device's own consent."""

from agent.core.actions import StartCapture
from agent.core.turn import Turn
from wire.command import LONGEST_CAPTURE_S, Command
from wire.ids import ReleaseRef


def obey(turn: Turn, command: Command) -> tuple[str, str]:
    """Begin to capture, or refuse; return outcome and reason for the command's answer."""
    state, order = turn.state, command.capture
    if order is None:
        return "refused", "expected an order of what to capture, got none"
    if order.model not in state.settings.consents:
        return "refused", (
            f"this device does not consent to send inputs of {order.model}: "
            f'its agent.toml has no [capture] allow = ["{order.model}"]'
        )
    champion = state.journal.champions.get(order.model)
    if champion is None:
        return "refused", f"{order.model} is not installed here"
    if order.version not in (None, champion.version):
        wanted = ReleaseRef(order.model, order.version or 0)
        return "refused", f"expected to serve {wanted}, it serves version {champion.version}"
    left_s = order.until - turn.now.wall
    if not 0 < left_s <= LONGEST_CAPTURE_S:
        return "refused", (
            f"expected to capture until within {LONGEST_CAPTURE_S // 86_400} days from now, "
            f"got until {left_s:.0f} s from now by this device's clock"
        )
    turn.do(StartCapture(command.id, order))
    state.next_look = turn.now.mono
    return "done", (
        f"captures up to {order.count} {order.kind} inputs of {order.model} for {left_s:.0f} s"
    )


def withdrawn(turn: Turn, model: str, request: str, deleted: int) -> None:
    """Say that what was captured for an order is deleted, since this device's consent is gone."""
    text = f"consent to send inputs of {model} is withdrawn; {deleted} samples are deleted"
    turn.say(f"capture {request}: {text}", "warning")
    turn.tell("consent", text, model=model, counts={"deleted": deleted})
