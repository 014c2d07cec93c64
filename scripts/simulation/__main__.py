"""`scripts/simulate`: the course of rollouts over a fleet that is not there."""

import dataclasses
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, Protocol

import click

from fleet.core.gate import Standing
from fleet.core.rollout import Rollout
from fleet.core.views import Refusal
from scripts.simulation.parts import Plan
from scripts.simulation.world import Course, World

LARGE = 20_000
LARGE_GRAIN_S = 30.0
SAID_S = 5.0
"""Without a terminal, seconds between two lines of progress."""
VIOLATED, NOT_DECIDED = 1, 3


class _Share(click.ParamType):  # type: ignore[type-arg] # not generic in older ones
    """`20%` or `0.2`."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"expected a share such as 20% or 0.2, got {text!r}", param, ctx)
        return share


SHARE = _Share()


@click.command()
@click.option("--devices", type=click.IntRange(2, 200_000), default=10_000, show_default=True)
@click.option("--waves", default="30,10%,50%,100%", show_default=True, help="As of a rollout.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--runs", type=click.IntRange(1, 10_000), default=1, show_default=True)
@click.option(
    "--points",
    type=click.FloatRange(0, 90),
    default=0.0,
    show_default=True,
    help="Plant a loss of so many points of accuracy.",
)
@click.option(
    "--hit",
    type=SHARE,
    default=1.0,
    show_default="100%",
    help="Of the devices, how many lose them.",
)
@click.option(
    "--crash",
    type=SHARE,
    default=0.0,
    show_default="0%",
    help="Of the devices, on how many it crashes when it is loaded.",
)
@click.option(
    "--disagree",
    type=SHARE,
    default=0.06,
    show_default="6%",
    help="Of inputs, on how many the two releases disagree.",
)
@click.option("--probation-pairs", type=click.IntRange(1), default=300, show_default=True)
@click.option("--labels-per-hour", type=click.FloatRange(1), default=3600.0, show_default=True)
@click.option(
    "--unlabelled",
    type=SHARE,
    default=0.0,
    show_default="0%",
    help="Of the devices, how many have no labels.",
)
@click.option("--loss", type=SHARE, default=0.01, show_default="1%", help="Of messages.")
@click.option(
    "--dead",
    type=SHARE,
    default=0.02,
    show_default="2%",
    help="Of the devices, how many never come back.",
)
@click.option(
    "--slow",
    type=SHARE,
    default=0.05,
    show_default="5%",
    help="Of the devices, how many have a twentieth of the line.",
)
@click.option("--line-kib-s", type=click.FloatRange(0.1), default=250.0, show_default=True)
@click.option("--model-mib", type=click.FloatRange(0.01), default=5.0, show_default=True)
@click.option(
    "--churn-hours",
    type=click.FloatRange(0),
    default=12.0,
    show_default=True,
    help="Between two losses of the line of one device; 0: never.",
)
@click.option(
    "--partitions",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="How often a tenth of the fleet is cut off for ten minutes.",
)
@click.option(
    "--skew-s",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    help="How wrong clocks are, at most.",
)
@click.option("--max-refused", type=click.IntRange(0, 100), metavar="PERCENT")
@click.option(
    "--judge-by", type=click.Choice(["tests", "threshold"]), default="tests", show_default=True
)
@click.option("--approve", is_flag=True, help="An operator approves every wave that holds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object for each run.")
def main(**asked: Any) -> None:
    """Take a rollout through a fleet on a virtual clock, by the code of controller and agent.

    Exit 0: as it should be; 1: a safety property was violated, or a bad release reached all;
    3: a rollout held for an operator.
    """
    as_json, runs = asked.pop("as_json"), asked.pop("runs")
    plan = _plan(asked)
    gc.disable()  # what there is stays; of cycles next to none are made
    courses = []
    for number in range(runs):
        course = _run(dataclasses.replace(plan, seed=plan.seed + number), as_json)
        courses.append(course)
        if as_json:
            click.echo(json.dumps({"seed": plan.seed + number, **dataclasses.asdict(course)}))
        else:
            _tell(plan, plan.seed + number, course, brief=runs > 1)
        gc.collect()
    if runs > 1 and not as_json:
        _tell_all(plan, courses)
    sys.exit(verdict(plan, courses))


def _plan(asked: dict[str, Any]) -> Plan:
    devices = asked["devices"]
    return Plan(
        devices=devices,
        waves=tuple(each.strip() for each in asked["waves"].split(",")),
        seed=asked["seed"],
        labelled_pairs=asked["probation_pairs"],
        labels_per_s=asked["labels_per_hour"] / 3600,
        disagree=asked["disagree"],
        points=asked["points"],
        hit=asked["hit"],
        crash=asked["crash"],
        unlabelled=asked["unlabelled"],
        loss=asked["loss"],
        artifact_bytes=round(asked["model_mib"] * 2**20),
        line_bytes_s=round(asked["line_kib_s"] * 1024),
        slow=asked["slow"],
        dead=asked["dead"],
        skew_s=asked["skew_s"],
        churn_s=asked["churn_hours"] * 3600,
        partitions=asked["partitions"],
        max_refused_percent=asked["max_refused"],
        judged_by=asked["judge_by"],
        approve=asked["approve"],
        grain_s=LARGE_GRAIN_S if devices > LARGE else 10.0,
    )


def verdict(plan: Plan, courses: list[Course]) -> int:
    """Return the exit code."""
    if any(each.violations for each in courses):
        return VIOLATED
    if plan.bad and any(each.status == "completed" for each in courses):
        return VIOLATED
    return NOT_DECIDED if any(each.status == "held" for each in courses) else 0


def _run(plan: Plan, quiet: bool) -> Course:
    world = World(plan)
    try:
        with _watching(plan, quiet) as watch:
            for rollout in world.run():
                watch.show(world.now, rollout)
    except Refusal as refusal:
        raise click.ClickException(f"{refusal.error}; next: {refusal.next_step}") from None
    return world.course()


class _Watch(Protocol):
    def show(self, now: float, rollout: Rollout | None) -> None: ...


class _Silence:
    def show(self, now: float, rollout: Rollout | None) -> None:
        pass


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, now: float, rollout: Rollout | None) -> None:
        if time.monotonic() - self._last >= SAID_S:
            self._last = time.monotonic()
            click.echo(f"{_clock(now)}  {_words(rollout)}", err=True)


def _answered(rollout: Rollout | None) -> int:
    told = rollout.told.values() if rollout is not None else ()
    return sum(each.answer.standing is not Standing.WORKING for each in told)


def _words(rollout: Rollout | None) -> str:
    return "the devices start" if rollout is None else f"{rollout.status}; {rollout.because}"


@contextmanager
def _watching(plan: Plan, quiet: bool) -> Iterator[_Watch]:
    if quiet:
        yield _Silence()
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.fields[clock]}"), BarColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=plan.devices, clock=_clock(0), words="")

        class Bar:
            def show(self, now: float, rollout: Rollout | None) -> None:
                progress.update(
                    task,
                    completed=_answered(rollout),
                    clock=_clock(now),
                    words=_words(rollout)[:90],
                )

        yield Bar()


def _clock(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60:3}:{minutes % 60:02}"


def _tell(plan: Plan, seed: int, course: Course, *, brief: bool) -> None:
    if not brief:
        for at, words in course.story:
            click.echo(f"{_clock(at)}  {words}")
    counts = ", ".join(f"{count} {name}" for name, count in course.counts.items())
    line = f"seed {seed}: {course.status} after {_clock(course.took_s).strip()}; told {course.told}"
    click.echo(f"{line} of {plan.devices}: {counts}")
    if plan.bad:
        when = "never" if course.decided_s is None else _clock(course.decided_s).strip()
        by = f" by {course.gate}" if course.gate else ""
        click.echo(
            f"  called off {when}{by}; {course.harmed} devices had it in service, for "
            f"{course.harmed_hours:.1f} hours together"
        )
    if course.silent and not brief:
        shown = ", ".join(course.silent[:5]) + (" ..." if len(course.silent) > 5 else "")
        click.echo(f"  without an answer: {len(course.silent)} ({shown})")
    for each in course.violations[:10]:
        click.echo(f"  VIOLATED: {each}")


def _tell_all(plan: Plan, courses: list[Course]) -> None:
    ends = ", ".join(f"{n} {end}" for end, n in Counter(c.status for c in courses).most_common())
    click.echo(f"{len(courses)} runs: {ends}")
    off = [each for each in courses if each.decided_s is not None]
    if plan.bad and off:
        at = median(each.decided_s or 0.0 for each in off)
        click.echo(
            f"found in {len(off)} of {len(courses)}, after {_clock(at).strip()} by the median; "
            f"devices that had it in service: {median(c.harmed for c in courses):g} by the median, "
            f"{max(c.harmed for c in courses)} at most"
        )
    elif not plan.bad:
        click.echo(f"false aborts: {len(off)} of {len(courses)}")


if __name__ == "__main__":
    main()
