"""What the demo does, step by step; each step ends as it should, or the demo fails."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fleet.core.errors import FleetError
from fleet.core.views import (
    DeviceView,
    RolloutDeviceView,
    RolloutStatus,
    RolloutView,
)
from fleet.demo.app import MODEL, picture_number, question
from fleet.demo.board import board, progress, releases, score_of
from fleet.demo.digits import Stream, read_digits
from fleet.demo.misread import latest_loss
from fleet.demo.processes import KEEP_LOGS
from fleet.demo.screen import Screen
from fleet.demo.world import SLOW_LINE_BYTES_PER_S, START_S, World
from wire.twin import Phase, Reason

ROLLOUT_S = 180.0
SETTLE_S = 60.0
_POLL_S = 0.25

KILL_FROM, KILL_TO = 20, 80
"""Percent of a download between which the agent is killed."""

SEEN = 40
"""Labelled answers on every device before its accuracy is worth a look."""


class Story:
    """Tells one run of the demo."""

    def __init__(self, screen: Screen, world: World) -> None:
        """Tell on `screen` what happens in `world`."""
        self._screen = screen
        self._world = world
        self._digits = read_digits(world.samples / "heldout.csv.gz")

    def tell(self, started: float) -> None:
        """Tell all of it; it began at `started`, monotonic seconds.

        Raises:
            FleetError: a step did not end as it should.
        """
        self.open()
        self.first_device()
        self._screen.step("The same release, to every device")
        self._screen.say(
            "Each device takes the variant that it can run. Where nothing serves yet, a release "
            "is committed once it has answered its golden samples."
        )
        self.roll_out(1)
        self._screen.step("A better release, on probation")
        self._screen.say(
            "digits@1 goes on answering the apps; digits@2 gets copies of the same pictures, in "
            "a process of its own. It takes over once 300 labelled pairs on the device say that "
            "it is no worse."
        )
        self.push(2)
        self.roll_out(2)
        self.refuse(3)
        self.sum_up(time.monotonic() - started)
        self.try_it()

    # ---- controller, devices, apps

    def open(self) -> None:
        """Start everything and say what it is."""
        world, screen = self._world, self._screen
        screen.step("A controller, devices, and an app on each of them")
        world.start_controller()
        health = world.client.health()
        screen.say(f"fleet serve: API at {world.client.base_url}, broker at {health.broker_url}.")
        world.start_devices()
        screen.say(
            f"{len(world.devices)} agents start as processes of their own, as on devices. "
            f"{world.slow.id} is on a slow line, {SLOW_LINE_BYTES_PER_S} bytes a second."
        )
        screen.say(
            "Each app shows held-out digits to the model on its device, and later posts what "
            "they really were. Every picture is moved and noised in a way of its own (seed "
            f"{world.plan.seed}): none is shown twice, so none counts twice as evidence."
        )
        world.until("all devices are online", self.all_online, START_S, _POLL_S)
        screen.lines([f"  {_runs_on(device)}" for device in self._devices()])

    def all_online(self) -> bool:
        """Return whether every device is there and has said what it can run.

        Raises:
            FleetError: a device can run nothing.
        """
        devices = self._devices()
        for device in devices:
            if device.agent and not device.capabilities.runtimes:
                why = ", ".join(f"{k}: {v}" for k, v in device.capabilities.unusable.items())
                raise FleetError(
                    f"{device.id}: expected a runtime that works, got none ({why})",
                    "pip install 'farflung[demo]'",
                )
        # The presence of a device may be known before its first report.
        there = [device for device in devices if device.online and device.agent]
        return len(there) == len(self._world.devices)

    # ---- one device alone

    def first_device(self) -> None:
        """Bring digits@1 to one device, whose agent is killed while it fetches."""
        world, screen = self._world, self._screen
        slow = world.slow
        screen.step("A release, to one device that loses power halfway")
        self.push(1)
        rollout = self._start("digits@1", f"device={slow.id}")
        with screen.board() as show:

            def halfway() -> RolloutDeviceView | None:
                view = self._world.client.rollout(rollout.id)
                done = f"{slow.id} has {_percent(view.devices[0])}% of digits@1"
                show.show(board(self._devices(), 0), done)
                return self._halfway(view)

            device = world.until(f"{slow.id} fetches digits@1", halfway, ROLLOUT_S)
        assert slow.agent is not None
        log_bytes = slow.agent.log.stat().st_size
        slow.agent.kill()
        screen.say(
            f"At {_percent(device)}% its agent was ended with kill -9 (process "
            f"{slow.agent.pid}). The broker delivers its last will:"
        )
        world.until(
            f"{slow.id} is seen to be gone",
            lambda: not self._world.client.device(slow.id).online,
            SETTLE_S,
        )
        screen.lines([f"  {slow.id} is offline"])
        slow.agent.restart()
        line = world.until(
            f"{slow.id} resumes its download",
            lambda: _find(slow.agent.said(log_bytes), "resuming,") if slow.agent else None,
            SETTLE_S,
        )
        screen.say("It was started again. Its log says, once it has hashed what lay on its disk:")
        screen.lines([f"  {line.partition(' INFO ')[2] or line}"])
        self._watch(rollout)

    def _halfway(self, view: RolloutView) -> RolloutDeviceView | None:
        """Return the one device while it is in the middle of its download."""
        (device,) = view.devices
        done = _percent(device) if device.phase is Phase.FETCHING else 0
        if device.phase in (Phase.VERIFIED, Phase.TRIAL, Phase.COMMITTED) or done > KILL_TO:
            raise FleetError(
                f"{device.id}: expected to kill it while it fetched, it was through already"
            )
        return device if done >= KILL_FROM else None

    # ---- all devices

    def push(self, version: int) -> None:
        """Push one of the sample releases."""
        folder = self._world.samples / f"digits-{version}"
        answer = self._world.fleet("model", "push", str(folder))
        self._screen.command(f"fleet model push {_short(folder)}", answer)

    def roll_out(self, version: int) -> None:
        """Bring a good release to every device."""
        rollout = self._start(f"digits@{version}", f"site={self._world.site}")
        self._watch(rollout)
        with self._screen.board() as show:

            def served() -> bool:
                devices = self._devices()
                show.show(board(devices, 0), "the apps ask, and later tell what it really was")
                return all(_serves(device, version) >= SEEN for device in devices)

            what = f"every device answers with digits@{version} and has {SEEN} labels"
            self._world.until(what, served, SETTLE_S, _POLL_S)
        self._screen.lines(board(self._devices(), 0))

    def refuse(self, version: int) -> None:
        """Offer a bad release, and see it refused by the devices themselves."""
        screen = self._screen
        screen.step("A worse release, refused")
        screen.say(
            "digits@3 was trained on with a batch that lacked one digit. It passes its golden "
            "samples, which are of the same batch; the devices see all ten."
        )
        self.push(version)
        rollout = self._start(f"digits@{version}", f"site={self._world.site}")
        view = self._watch(rollout, RolloutStatus.ABORTED)
        refused = [d for d in view.devices if d.reason is Reason.WORSE_THAN_CHAMPION]
        if not refused:
            raise FleetError(f"digits@{version}: expected devices to refuse it, got {view.because}")
        screen.say("Refused by the devices that had seen enough, in their own words:")
        screen.lines([f"  {device.id}  {device.detail}" for device in refused])
        self._show_misread(refused, view.digest, version)
        screen.say(f"The controller called the rollout off: {view.because}.")
        self._back_on(version - 1)

    def _show_misread(
        self, refused: Sequence[RolloutDeviceView], digest: str, version: int
    ) -> None:
        """Draw a digit that the challenger misread and the champion did not."""
        for device in refused:
            loss = latest_loss(device.id, self._world.device(device.id).api, digest)
            if loss is None:
                continue
            self._screen.say(
                f"One of the pictures it was refused for, from {device.id}'s own account "
                f"(GET /v2/models/{MODEL}/shadow):"
            )
            stream = Stream(self._digits, self._world.plan.seed, device.id)
            self._screen.picture(
                stream.at(picture_number(loss.id)).pixels,
                [
                    f"{device.id}, request {loss.id}",
                    "",
                    f"the label      {loss.label}",
                    f"digits@{version - 1} says  {loss.champion}",
                    f"digits@{version} says  {loss.challenger}",
                ],
            )
            return
        raise FleetError(f"digits@{version}: expected a misread digit in the devices' accounts")

    def _back_on(self, version: int) -> None:
        """Wait until all devices are at rest with the release they had before."""
        with self._screen.board() as show:

            def settled() -> bool:
                devices = self._devices()
                show.show(board(devices, 0), f"back to digits@{version}")
                return all(_at_rest(device, version) for device in devices)

            what = f"all devices serve digits@{version} again"
            self._world.until(what, settled, SETTLE_S, _POLL_S)
        self._screen.say(
            f"Every device serves digits@{version}, and nobody had to do anything. (Superseded: "
            "the order was withdrawn before the device had decided.)"
        )
        self._screen.lines(board(self._devices(), 0))

    # ---- the end

    def sum_up(self, seconds: float) -> None:
        """Say what it came to."""
        self._screen.head("Summary")
        self._screen.lines(releases(self._devices()))
        self._screen.say(f"It took {seconds:.0f} s. Accuracy is of the labels that came back.")

    def try_it(self) -> None:
        """Give the two lines to go on with."""
        device = self._world.devices[-1]
        body = self._world.home / "digit.json"
        body.write_text(json.dumps(question(self._digits[0])))
        url = f"{device.api}/v2/models/{MODEL}/infer"
        kept = self._world.plan.keep
        self._screen.head("Try it" if kept else "With --keep all of it stays, for you to try")
        self._screen.lines(
            [
                f"curl -s {url} \\",
                f"  -d @{body}",
                f"{_program()} --controller {self._world.client.base_url} \\",
                "  model push yours.onnx",
            ]
        )
        if not self._world.plan.own_broker:
            self._screen.say(
                "On your broker stay the retained documents of "
                f"{', '.join(device.id for device in self._world.devices)}."
            )

    # ---- what the steps share

    def _start(self, release: str, to: str) -> RolloutView:
        self._screen.command(f"fleet rollout start {release} --to {to}")
        return self._world.start_rollout(release, to)

    def _watch(
        self, rollout: RolloutView, wanted: RolloutStatus = RolloutStatus.COMPLETED
    ) -> RolloutView:
        """Show the devices until the rollout is over, and see that it ended as it should."""
        pairs = rollout.probation.labelled_pairs
        with self._screen.board() as show:

            def over() -> RolloutView | None:
                view = self._world.client.rollout(rollout.id)
                show.show(board(self._devices(), pairs), progress(view))
                return view if view.status.final else None

            view = self._world.until(f"{rollout.release}: an end", over, ROLLOUT_S, _POLL_S)
        bad = [d for d in view.devices if d.phase in (Phase.FAILED, Phase.REJECTED)]
        if view.status is not wanted or bad:
            why = next((f"{d.id}: {d.detail}" for d in bad), view.because)
            raise FleetError(
                f"{view.release}: expected the rollout to be {wanted}, it was {view.status}: {why}",
                KEEP_LOGS,
            )
        return view

    def _devices(self) -> list[DeviceView]:
        ours = {device.id for device in self._world.devices}
        return [device for device in self._world.client.devices() if device.id in ours]


def _runs_on(device: DeviceView) -> str:
    runtimes = ", ".join(
        f"{name} {version}" for name, version in device.capabilities.runtimes.items()
    )
    return f"{device.id}  {runtimes}"


def _percent(device: RolloutDeviceView) -> int:
    return 100 * device.bytes_done // device.bytes_total if device.bytes_total else 0


def _serves(device: DeviceView, version: int) -> int:
    """Return how many labelled answers the device gave with this version; 0: none, or another."""
    serving = device.serving[0] if device.serving else None
    if serving is None or serving.version != version:
        return 0
    score = score_of(device, serving)
    return score.labelled if score else 0


def _at_rest(device: DeviceView, version: int) -> bool:
    serving = device.serving[0] if device.serving else None
    return (
        device.online
        and serving is not None
        and serving.version == version
        and bool(serving.runtime)
        and all(report.phase.final for report in device.deployments)
        and device.reported_revision == device.desired_revision
    )


def _find(text: str, words: str) -> str | None:
    return next((line for line in text.splitlines() if words in line), None)


def _short(path: Path) -> str:
    """Return a path as one would type it here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _program() -> str:
    """Return how to call this `fleet` from another terminal."""
    ours = Path(sys.executable).with_name("fleet")
    found = shutil.which("fleet")
    if found is not None and Path(found).resolve() == ours.resolve():
        return "fleet"
    return str(ours) if ours.exists() else f"{sys.executable} -m fleet"
