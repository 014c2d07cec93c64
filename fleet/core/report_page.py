"""A report as one picture: tiles of figures, then a card for each question one asks of a model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleet.core.drawing import Box, Canvas, Colour, Point, Scale, fit, plain, runs, width_of
from fleet.core.report_views import (
    KINDS,
    AccuracyView,
    Kind,
    ReleaseReportView,
    ReportView,
    StepView,
)
from fleet.core.report_words import (
    between,
    change_in_words,
    date,
    day,
    folded,
    milliseconds,
    moment,
    of_kind,
    p_in_words,
    percent,
    plural,
    rate,
    short,
    whole,
)

WIDTH = 1080.0
MARGIN = 28.0
GAP = 16.0
INNER = WIDTH - 2 * MARGIN
HALF = (INNER - GAP) / 2

MAX_CLASSES = 20
MAX_MISTAKES = 10
MAX_FEATURES = 16
EMPTY = 124.0
"""Height of a card that has nothing to show."""

MAX_COHORTS = 24

_FORMS: dict[Kind, str] = {"labelled": "circle", "golden": "square", "estimated": "diamond"}
_DASHES: dict[Kind, str] = {"labelled": "", "golden": "7 4", "estimated": "2 4"}
_RESTS_ON: dict[Kind, str] = {
    "labelled": "labels", "golden": "samples", "estimated": "answers",
}  # fmt: skip
_QUANTILES: tuple[tuple[str, Colour, str], ...] = (
    ("p50", "fast", ""), ("p95", "middle", "7 4"), ("p99", "slow", "2 4"),
)  # fmt: skip
_ABOUT = (
    "Intervals are 95%. Over several devices they allow for devices that differ from each other; "
    "within one they are Wilson's. Golden samples are the same on every device and count once.",
    "Estimated accuracy is what the calibrated confidence promises: nobody checked it, and it does "
    "not see when the same input comes to mean something else.",
)


def svg(report: ReportView) -> str:
    """Return the report as an SVG document."""
    chosen = next((each for each in report.releases if each.requests), None)
    name = f"{report.model}@{report.version}" if report.version else report.model
    canvas = Canvas(WIDTH, f"Report on {name}", _in_words(report))
    y = _head(canvas, report, name)
    if report.version is None:
        y = _side_by_side(canvas, y, report)
    release = report.releases[0] if report.version is not None else chosen
    if release is not None:
        if report.version is None:
            canvas.text(MARGIN, y + 22, f"{report.model}@{release.version}", size=20, bold=True)
            y += 40
        y = _details(canvas, y, report, release)
    for line in _ABOUT:
        canvas.text(MARGIN, y + 12, line, "soft", 11)
        y += 17
    canvas.text(MARGIN, y + 12, f"Made {moment(report.made_at)} UTC.", "soft", 11)
    canvas.height = y + 34
    return canvas.svg()


def html(report: ReportView) -> str:
    """Return the report as a page of its own, with the picture inside."""
    name = f"{report.model}@{report.version}" if report.version else report.model
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Report on {plain(name)}</title>\n"
        "<style>body{margin:0;background:#f4f5f7}svg{display:block;margin:0 auto;max-width:100%;"
        "height:auto}@media (prefers-color-scheme:dark){body{background:#12161c}}</style>\n"
        f"</head>\n<body>\n{svg(report)}</body>\n</html>\n"
    )


def _in_words(report: ReportView) -> str:
    parts = []
    for release in report.releases:
        accuracies = "; ".join(
            f"{each.kind} accuracy {percent(each.accuracy)} ({between(each)})"
            for each in release.accuracy
            if each.accuracy is not None
        )
        parts.append(
            f"{report.model}@{release.version}: {plural(release.requests, 'answer')} on"
            f" {plural(release.devices, 'device')}; {accuracies or 'no accuracy'};"
            f" p95 latency {milliseconds(release.latency.p95_ms)}."
        )
    return " ".join(parts)


# The frame


def _head(canvas: Canvas, report: ReportView, name: str) -> float:
    canvas.text(MARGIN, 50, name, size=28, bold=True)
    words = f"{moment(report.since)} to {moment(report.until)} UTC"
    if report.version is not None and report.releases:
        release = report.releases[0]
        words += f"  ·  {plural(release.devices, 'device')}  ·  {short(release.requests)} answers"
        words += f"  ·  {', '.join(release.variants)}" if release.variants else ""
    else:
        words += f"  ·  {plural(len(report.releases), 'release')}"
    canvas.text(MARGIN, 74, fit(words, INNER, 13), "soft", 13)
    return 94.0


def _card(canvas: Canvas, box: Box, title: str, about: str = "") -> None:
    canvas.rectangle(box.x, box.y, box.width, box.height, "card", "edge", radius=10)
    canvas.text(box.x + 18, box.y + 28, title, size=14, bold=True)
    if about:
        words = fit(about, box.width - 36, 11.5)
        canvas.text(
            box.x + 18, box.y + 46, words, "soft", 11.5, hint=about if words != about else ""
        )


def _nothing(canvas: Canvas, box: Box, words: str) -> None:
    middle = box.x + box.width / 2
    canvas.text(middle, box.y + box.height / 2 + 22, words, "soft", 13, "middle")


def _details(canvas: Canvas, y: float, report: ReportView, release: ReleaseReportView) -> float:
    y = _tiles(canvas, y, release)
    y = _accuracy_card(canvas, y, report, release)
    cards: list[tuple[float, Callable[[Box], None]]] = []
    if release.classes:
        rows = min(len(release.classes), MAX_CLASSES)
        cards.append((84.0 + 21 * rows, lambda box: _classes(canvas, box, release)))
    tall = 320.0 if release.calibration.bins else EMPTY
    cards.append((tall, lambda box: _reliability(canvas, box, release)))
    tall = 290.0 if any(step.latency.p50_ms is not None for step in release.steps) else EMPTY
    cards.append((tall, lambda box: _latency(canvas, box, report, release)))
    if release.mistakes:
        rows = min(len(release.mistakes), MAX_MISTAKES)
        cards.append((84.0 + 21 * rows, lambda box: _mistakes(canvas, box, release)))
    facts = _facts(release)
    if facts:
        cards.append((56.0 + 21 * len(facts), lambda box: _others(canvas, box, facts)))
    # Each goes where there is more room left.
    columns = [y, y]
    for height, draw in cards:
        place = columns.index(min(columns))
        draw(Box(MARGIN + place * (HALF + GAP), columns[place], HALF, height))
        columns[place] += height + GAP
    y = _drift(canvas, max(columns), report, release)
    return _cohorts(canvas, y, report, release)


def _tiles(canvas: Canvas, y: float, release: ReleaseReportView) -> float:
    width, height = (INNER - 4 * 12) / 5, 112.0
    for place, kind in enumerate(KINDS):
        view = of_kind(release.accuracy, kind)
        x = MARGIN + place * (width + 12)
        on = f"{short(view.samples)} {_RESTS_ON[kind]}"
        on += f", {plural(view.devices, 'device')}" if view.devices else ""
        nearly = "~" if kind == "estimated" and view.accuracy is not None else ""
        words = (nearly + percent(view.accuracy), between(view), on)
        _tile(canvas, Box(x, y, width, height), f"{kind.capitalize()} accuracy", words)
        canvas.dot(x + width - 20, y + 21, kind, form=_FORMS[kind], size=5)
    latency = release.latency
    missed = "no limit set"
    if latency.limit_ms is not None:
        missed = f"{percent(latency.miss_share, 2)} over {latency.limit_ms:g} ms"
    around = f"p50 {milliseconds(latency.p50_ms)}, p99 {milliseconds(latency.p99_ms)}"
    x = MARGIN + 3 * (width + 12)
    words = (milliseconds(latency.p95_ms), around, missed)
    _tile(canvas, Box(x, y, width, height), "Latency, p95", words)
    failed = release.errors / release.requests if release.requests else None
    words = (
        percent(failed, 2),
        f"{plural(release.errors, 'error')} of {short(release.requests)}",
        f"{whole(release.drops)} dropped in the queue",
    )
    _tile(canvas, Box(x + width + 12, y, width, height), "Errors", words)
    return y + height + GAP


def _tile(canvas: Canvas, box: Box, title: str, words: tuple[str, str, str]) -> None:
    value, second, third = words
    x, y, room = box.x + 16, box.y, box.width - 26
    canvas.open(f"{title}: {value}, {second}, {third}")
    canvas.rectangle(box.x, y, box.width, box.height, "card", "edge", radius=10)
    canvas.text(x, y + 26, title, "soft", 12)
    canvas.text(x, y + 60, value, size=27, bold=True)
    canvas.text(x, y + 80, fit(second, room, 11.5), "ink", 11.5)
    canvas.text(x, y + 97, fit(third, room, 11), "soft", 11)
    canvas.close()


# Over time


def _times(report: ReportView, x: float, width: float) -> Scale:
    return Scale(report.since, report.until, x, x + width)


def _middle(step: StepView) -> float:
    return (step.start + step.end) / 2


def _time_axis(canvas: Canvas, times: Scale, y: float, report: ReportView) -> None:
    """Write days, or hours, below a chart: as many as have room."""
    span = report.until - report.since
    steps = (3600, 3 * 3600, 6 * 3600, 12 * 3600, 86_400, 2 * 86_400, 5 * 86_400, 7 * 86_400,
             14 * 86_400, 30 * 86_400, 91 * 86_400, 365 * 86_400)  # fmt: skip
    room = max(2, int((times.end - times.start) / 76))
    step = next((each for each in steps if span / each <= room), max(steps[-1], span))
    at = -(-report.since // step) * step
    form = "%H:%M" if step < 86_400 else "%-d %b"
    while at <= report.until:
        words = date(at).strftime(form)
        if step < 86_400 and at % 86_400 == 0:
            words = date(at).strftime("%-d %b")
        canvas.text(times(at), y, words, "soft", 11, "middle")
        at += step


def _grid(canvas: Canvas, values: Scale, times: Scale, words: Callable[[float], str]) -> None:
    for tick in values.ticks():
        y = values(tick)
        canvas.line([(times.start, y), (times.end, y)], "grid")
        canvas.text(times.start - 8, y + 4, words(tick), "soft", 11, "end")


def _legend(canvas: Canvas, right: float, y: float,
            entries: Sequence[tuple[str, Colour, str, str]]) -> None:  # fmt: skip
    """Write (name, colour, dash, form) from right to left, each with its line and its mark."""
    x = right
    for name, colour, dash, form in reversed(entries):
        x -= 7.2 * len(name) + 46
        canvas.line([(x, y - 4), (x + 26, y - 4)], colour, width=2, dash=dash)
        if form:
            canvas.dot(x + 13, y - 4, colour, form=form)
        canvas.text(x + 33, y, name, "ink", 12)


def _accuracy_card(
    canvas: Canvas, y: float, report: ReportView, release: ReleaseReportView
) -> float:
    known = [each for step in release.steps for each in step.accuracy if each.accuracy is not None]
    height = 300.0 if known else EMPTY
    shown = [kind for kind in KINDS if any(each.kind == kind for each in known)]
    canvas.open(f"Accuracy over time: {', '.join(shown) or 'nothing is known'}")
    unit = "day" if report.step_s >= 86_400 else "hour"
    about = f"by {unit}, with 95% intervals; the three kinds answer different questions"
    box = Box(MARGIN, y, INNER, height)
    _card(canvas, box, "Accuracy over time", about)
    if not known:
        _nothing(canvas, box, "no labels, golden runs or estimates in this time")
        canvas.close()
        return y + height + GAP
    ends = [
        end
        for each in known
        for end in (each.low, each.high, each.accuracy)
        if end is not None
    ]  # fmt: skip
    low, high = _room(min(ends), max(ends))
    left, right = MARGIN + 62, MARGIN + INNER - 24
    values = Scale(low, high, y + height - 40, y + 66)
    times = _times(report, left, right - left)
    digits = 0 if high - low > 0.05 else 1
    _grid(canvas, values, times, lambda tick: percent(tick, digits))
    _time_axis(canvas, times, y + height - 18, report)
    _legend(canvas, right, y + 28, [(kind, kind, _DASHES[kind], _FORMS[kind]) for kind in shown])
    steps = _unbroken(release.steps)
    for kind in reversed(shown):
        _band(canvas, steps, kind, times, values)
    for kind in reversed(shown):
        _course(canvas, steps, kind, times, values)
    canvas.close()
    return y + height + GAP


def _unbroken(steps: Sequence[StepView]) -> list[StepView]:
    """Return steps with one that knows nothing wherever some are missing: lines end there."""
    found: list[StepView] = []
    for step in steps:
        if found and step.start > found[-1].end:
            found.append(StepView(start=found[-1].end, end=step.start, requests=0, errors=0))
        found.append(step)
    return found


def _room(low: float, high: float) -> tuple[float, float]:
    """Return a stretch around shares from `low` to `high` that is wide enough to be read."""
    pad = max(0.1 * (high - low), 0.005)
    low, high = max(0.0, low - pad), min(1.0, high + pad)
    return (low, high) if high - low > 0.02 else (max(0.0, high - 0.02), high)


def _band(canvas: Canvas, steps: Sequence[StepView], kind: Kind, times: Scale, values: Scale,
          ) -> None:  # fmt: skip
    upper: list[tuple[float, float | None]] = []
    lower: list[tuple[float, float | None]] = []
    for step in steps:
        view = of_kind(step.accuracy, kind)
        x = times(_middle(step))
        upper.append((x, None if view.high is None else values(view.high)))
        lower.append((x, None if view.low is None else values(view.low)))
    for above, below in zip(runs(upper), runs(lower), strict=True):
        canvas.area([*above, *reversed(below)], kind, opacity=0.14)
        if len(above) == 1:
            canvas.line([above[0], below[0]], kind, width=1.5, opacity=0.6)


def _course(
    canvas: Canvas, steps: Sequence[StepView], kind: Kind, times: Scale, values: Scale
) -> None:
    found = [(step, of_kind(step.accuracy, kind)) for step in steps]
    points = [
        (times(_middle(step)), None if view.accuracy is None else values(view.accuracy))
        for step, view in found
    ]
    for run in runs(points):
        canvas.line(run, kind, width=2, dash=_DASHES[kind])
    for step, view in found:
        if view.accuracy is not None:
            when = moment(step.start) if step.end - step.start < 86_400 else day(step.start)
            hint = (
                f"{when}: {kind} {percent(view.accuracy)} ({between(view)}),"
                f" {whole(view.samples)} {_RESTS_ON[kind]}"
            )
            x, y = times(_middle(step)), values(view.accuracy)
            canvas.dot(x, y, kind, form=_FORMS[kind], hint=hint)


def _latency(canvas: Canvas, box: Box, report: ReportView, release: ReleaseReportView) -> None:
    latency = release.latency
    canvas.open(
        f"Latency over time; in all p50 {milliseconds(latency.p50_ms)},"
        f" p95 {milliseconds(latency.p95_ms)}, p99 {milliseconds(latency.p99_ms)}"
    )
    about = (
        "quantiles of all devices' answers together"
        if latency.limit_ms is None
        else f"{whole(latency.slo_misses)} of {short(release.requests)} answers took longer than"
        f" {latency.limit_ms:g} ms"
    )
    _card(canvas, box, "Latency over time", about)
    series = [
        [
            (_middle(step), value)
            for step in release.steps
            for value in (getattr(step.latency, f"{name}_ms"),)
            if value is not None
        ]
        for name, _, _ in _QUANTILES
    ]
    every = [value for line in series for _, value in line]
    if not every:
        why = "no times of answers were counted" if release.requests else "no answers in this time"
        _nothing(canvas, box, why)
        canvas.close()
        return
    left, right = box.x + 66, box.right - 44
    low, high = min(every), max([*every, *([latency.limit_ms] if latency.limit_ms else [])])
    logarithmic = high / max(low, 1e-6) > 8
    low, high = (low / 1.25, high * 1.25) if logarithmic else (0.0, high * 1.1)
    values = Scale(low, high, box.bottom - 40, box.y + 68, logarithmic)
    times = _times(report, left, right - left)
    _grid(canvas, values, times, lambda tick: f"{tick:g} ms")
    _time_axis(canvas, times, box.bottom - 18, report)
    if latency.limit_ms is not None:
        at = values(latency.limit_ms)
        canvas.line([(left, at), (right, at)], "bad", width=1.5, dash="3 3")
    for (name, colour, dash), line in zip(_QUANTILES, series, strict=True):
        points: list[tuple[float, float | None]] = []
        before = None
        for at, value in line:
            if before is not None and at - before > 1.5 * report.step_s:
                points.append((times(at), None))
            points.append((times(at), values(value)))
            before = at
        for run in runs(points):
            canvas.line(run, colour, width=2, dash=dash)
        for at, value in line:
            hint = f"{moment(int(at))}: {name} {milliseconds(value)}"
            canvas.dot(times(at), values(value), colour, size=2.4, hint=hint)
    lowest = -math.inf
    # From the top down, none over another.
    ends = [(values(line[-1][1]) + 4, times(line[-1][0]) + 8) if line else None for line in series]
    named = [*zip(_QUANTILES, ends, strict=True)][::-1]
    for (name, colour, _), end in sorted(named, key=lambda each: each[1] or (0.0, 0.0)):
        if end is not None:
            lowest = max(end[0], lowest + 13)
            canvas.text(end[1], lowest, name, colour, 12, bold=True)
    if latency.limit_ms is not None:
        words = f"limit {latency.limit_ms:g} ms"
        canvas.text(left + 4, values(latency.limit_ms) - 6, words, "bad", 11, halo=True)
    canvas.close()


# Classes


def _classes(canvas: Canvas, box: Box, release: ReleaseReportView) -> None:
    rows = sorted(release.classes, key=lambda each: (each.recall is None, each.recall or 0.0))
    left_out = len(rows) - MAX_CLASSES
    canvas.open(f"Recall by class, {len(rows)} classes")
    about = "how many of a class's labels were found, the worst first; tick: precision"
    if left_out > 0:
        about = f"the {MAX_CLASSES} worst of {len(rows)} classes; tick: precision"
    _card(canvas, box, "Recall by class", about)
    left, right = box.x + 132, box.right - 132
    at = box.y + 66.0
    scale = Scale(0.0, 1.0, left, right)
    for row in rows[:MAX_CLASSES]:
        canvas.text(left - 10, at + 11, fit(row.name, 104, 12), "ink", 12, "end", hint=row.name)
        canvas.rectangle(left, at + 2, right - left, 11, "grid", radius=3)
        hint = (
            f"{row.name}: recall {percent(row.recall)}, precision {percent(row.precision)},"
            f" {whole(row.correct)} of {plural(row.labels, 'label')} found"
        )
        if row.recall is not None:
            canvas.rectangle(left, at + 2, scale(row.recall) - left, 11, "bar", radius=3,
                             opacity=0.85, hint=hint)  # fmt: skip
        if row.precision is not None:
            place = scale(row.precision)
            canvas.line([(place, at - 1), (place, at + 16)], "ink", width=2)
        canvas.text(right + 60, at + 12, percent(row.recall), "ink", 12, "end", bold=True)
        canvas.text(box.right - 18, at + 12, f"n {short(row.labels)}", "soft", 11, "end")
        at += 21
    canvas.close()


def _mistakes(canvas: Canvas, box: Box, release: ReleaseReportView) -> None:
    canvas.open("Most frequent mistakes")
    about = "true class → what was answered; share of the true class's labels"
    _card(canvas, box, "Most frequent mistakes", about)
    shown = release.mistakes[:MAX_MISTAKES]
    most = max(each.count for each in shown)
    left, right = box.x + 196, box.right - 110
    at = box.y + 66.0
    for each in shown:
        words = f"{each.true} → {each.answered}"
        canvas.text(left - 10, at + 11, fit(words, 168, 12), "ink", 12, "end", hint=words)
        canvas.rectangle(left, at + 2, (right - left) * each.count / most, 11, "bad", radius=3,
                         opacity=0.75, hint=f"{words}: {whole(each.count)} times")  # fmt: skip
        canvas.text(right + 44, at + 12, short(each.count), "ink", 12, "end", bold=True)
        canvas.text(box.right - 18, at + 12, percent(each.share), "soft", 11, "end")
        at += 21
    canvas.close()


def _reliability(canvas: Canvas, box: Box, release: ReleaseReportView) -> None:
    view = release.calibration
    error = "unknown" if view.error is None else f"{view.error:.3f}"
    canvas.open(f"Reliability: expected calibration error {error}")
    about = f"expected calibration error {error} on {plural(view.answers, 'labelled answer')}"
    _card(canvas, box, "Does the confidence mean what it says?", about)
    if not view.bins:
        _nothing(canvas, box, "no labelled answers with a confidence")
        canvas.close()
        return
    bottom, top = box.bottom - 56, box.y + 66
    left, right = box.x + 66, box.right - 24
    across, up = Scale(0.0, 1.0, left, right), Scale(0.0, 1.0, bottom, top)
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        canvas.line([(left, up(tick)), (right, up(tick))], "grid")
        canvas.text(left - 8, up(tick) + 4, percent(tick, 0), "soft", 11, "end")
        canvas.text(across(tick), bottom + 18, percent(tick, 0), "soft", 11, "middle")
    canvas.text((left + right) / 2, bottom + 38, "mean confidence", "soft", 11, "middle")
    canvas.text(
        box.x + 22, (bottom + top) / 2, "right answers", "soft", 11, "middle", upright=False
    )
    most = max(each.answers for each in view.bins)
    for each in view.bins:
        # How many there are, from the bottom up: a bin of few says little.
        tall = (bottom - top) * 0.22 * each.answers / most
        canvas.rectangle(across(each.low) + 1, bottom - tall, across(each.high)
                         - across(each.low) - 2, tall, "soft", opacity=0.25)  # fmt: skip
    canvas.line([(across(0), up(0)), (across(1), up(1))], "soft", width=1.5, dash="5 4")
    points = [(across(each.confidence), up(each.accuracy)) for each in view.bins]
    canvas.line(points, "labelled", width=1.5, opacity=0.6)
    for each, (px, py) in zip(view.bins, points, strict=True):
        ideal = up(each.confidence)
        canvas.line([(px, py), (px, ideal)], "bad", width=2, opacity=0.55)
        size = 3 + 4 * math.sqrt(each.answers / most)
        hint = (
            f"confidence {percent(each.confidence)}: {percent(each.accuracy)} right of"
            f" {plural(each.answers, 'answer')}"
        )
        canvas.dot(px, py, "labelled", size=size, hint=hint)
    canvas.close()


def _facts(release: ReleaseReportView) -> list[tuple[str, str]]:
    """Return the facts that have no picture."""
    labels, rows = release.labels, list[tuple[str, str]]()
    if labels.coverage is not None:
        rows.append(("answers with a label", f"{percent(labels.coverage)}, {whole(labels.labelled)}"
                     f" of {short(labels.answers)}"))  # fmt: skip
    if labels.gap is not None:
        rows.append(
            ("confidence, labelled and all",
             f"{percent(labels.confidence_labelled)} and {percent(labels.confidence)},"
             f" gap {100 * labels.gap:+.1f} points")
        )  # fmt: skip
    if labels.orphans:
        rows.append(("labels that came too late", whole(labels.orphans)))
    if release.pushed_accuracy is not None:
        rows.append(("accuracy as pushed", percent(release.pushed_accuracy)))
    if release.change is not None and release.change.accuracy is not None:
        rows.append((f"labelled, against {release.change.parent}", change_in_words(
            release.change.accuracy, release.change.low, release.change.high)))  # fmt: skip
    if release.golden is not None:
        golden = release.golden
        words = f"{whole(golden.flips)} of {short(golden.samples)} in {plural(golden.runs, 'run')}"
        rows.append(("golden samples that flipped", words))
    if release.shadow is not None:
        shadow = release.shadow
        words = f"{short(shadow.disagreements)} of {plural(shadow.pairs, 'pair')}"
        rows.append(("challengers disagreed in", words))
        words = f"{whole(shadow.better)} better, {whole(shadow.worse)} worse"
        rows.append((f"of {short(shadow.labelled)} labelled pairs", words))
    if release.values is not None and release.values.p50 is not None:
        words = f"{release.values.p50:.3g} (half), {release.values.p95:.3g} (95%)"
        rows.append((f"{short(release.values.answers)} numbers were off by", words))
    rows += [(each.name.replace("_", " "), rate(each.value, each.unit)) for each in release.rates]
    rows += [(each.name.replace("_", " "), whole(each.count)) for each in release.outcomes]
    return rows


def _others(canvas: Canvas, box: Box, facts: Sequence[tuple[str, str]]) -> None:
    _card(canvas, box, "Beside that")
    at = box.y + 56.0
    for name, words in facts:
        room = box.width - 48 - min(width_of(name, 12), 210)
        canvas.text(box.x + 18, at, fit(name, 210, 12), "soft", 12, hint=name)
        canvas.text(box.right - 18, at, fit(words, room, 12), "ink", 12, "end", hint=words)
        at += 21


# Drift


def _drift(canvas: Canvas, y: float, report: ReportView, release: ReleaseReportView) -> float:
    if not release.drift:
        return y
    shown = release.drift[:MAX_FEATURES]
    moved = sum(each.drifted for each in release.drift)
    height = 108.0 + 23 * len(shown)
    canvas.open(f"Drift against the baseline: {moved} of {len(release.drift)} features moved")
    left_out = len(release.drift) - len(shown)
    about = (
        f"{moved} of {len(release.drift)} moved: a two-sample test with false discoveries"
        " controlled, and an effect that matters"
        + (f"; {left_out} weaker ones are left out" if left_out else "")
    )
    _card(canvas, Box(MARGIN, y, INNER, height), "Drift against the baseline", about)
    left, right = MARGIN + 172, MARGIN + INNER - 268
    times = _times(report, left, right - left)
    at = y + 84.0
    heads = (("effect", 208), ("PSI", 152), ("q", 86), ("", 18))
    for name, back in heads:
        canvas.text(MARGIN + INNER - back, at - 8, name, "soft", 11, "end")
    by_step = [(step, dict(step.drift)) for step in release.steps]
    strongest = max(
        [0.2, *(each.effect or 0.0 for each in shown),
         *(e for _, every in by_step for e in every.values())]
    )  # fmt: skip
    for each in shown:
        canvas.text(left - 12, at + 14, fit(each.name, 140, 12), "ink", 12, "end", hint=each.name)
        canvas.rectangle(left, at, right - left, 19, "grid", radius=2)
        for step, every in by_step:
            if each.name in every:
                effect = every[each.name]
                hint = f"{each.name}, {moment(step.start)}: effect {effect:.3f}"
                start, end = times(step.start), times(step.end)
                canvas.rectangle(start, at, end - start - 0.6, 19, "card")
                canvas.rectangle(start, at, end - start - 0.6, 19, "heat",
                                 opacity=0.06 + 0.94 * effect / strongest, hint=hint)  # fmt: skip
        effect_words = "-" if each.effect is None else f"{each.effect:.3f}"
        psi = "-" if each.psi is None else f"{each.psi:.2f}"
        for words, back in ((effect_words, 208), (psi, 152), (p_in_words(each.q), 86)):
            canvas.text(MARGIN + INNER - back, at + 14, words, "ink", 12, "end")
        verdict: tuple[str, Colour] = ("moved", "bad") if each.drifted else ("as before", "good")
        if each.q is None:
            verdict = ("too few", "soft")
        canvas.text(MARGIN + INNER - 18, at + 14, verdict[0], verdict[1], 12, "end",
                    bold=each.drifted)  # fmt: skip
        at += 23
    _time_axis(canvas, times, at + 14, report)
    for part in range(24):
        canvas.rectangle(left + 5 * part, y + 61, 5, 9, "heat", opacity=0.06 + 0.94 * part / 23)
    canvas.text(left - 8, y + 70, "0", "soft", 11, "end")
    canvas.text(
        left + 128, y + 70, f"{strongest:.2g} distance beyond chance (Jensen-Shannon)", "soft", 11
    )
    canvas.close()
    return y + height + GAP


# Cohorts and releases


def _cohorts(canvas: Canvas, y: float, report: ReportView, release: ReleaseReportView) -> float:
    if report.by is None or not (release.cohorts or release.cohorts_withheld):
        return y
    shown = release.cohorts[:MAX_COHORTS]
    more = len(release.cohorts) - len(shown) + release.cohorts_left_out
    rows = [
        _Row(
            each.group or "(none)",
            f"{plural(each.devices, 'device')}, {short(each.requests)} answers",
            each.accuracy,
            (
                milliseconds(each.latency.p95_ms),
                percent(each.errors / each.requests if each.requests else None, 2),
                "-" if each.drifted is None else f"{each.drifted} moved",
            ),
        )
        for each in shown
    ]
    about = f"{more} more are left out" if more else "the same numbers for each of them apart"
    about = folded(report, release) or about
    return _whiskers(canvas, y, f"By {report.by}", rows, about=about, last="drift")


def _side_by_side(canvas: Canvas, y: float, report: ReportView) -> float:
    rows = []
    for each in report.releases[:MAX_COHORTS]:
        change = each.change
        words = ""
        if change is not None and change.accuracy is not None:
            words = f"{100 * change.accuracy:+.1f} points"
        rows.append(
            _Row(
                f"@{each.version}",
                f"{plural(each.devices, 'device')}, {short(each.requests)} answers",
                each.accuracy,
                (
                    milliseconds(each.latency.p95_ms),
                    percent(each.errors / each.requests if each.requests else None, 2),
                    words or "-",
                ),
            )
        )
    about = "change: labelled accuracy against the release it was made from"
    return _whiskers(canvas, y, "Releases", rows, about=about, last="change")


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    about: str
    accuracy: tuple[AccuracyView, ...]
    cells: tuple[str, str, str]
    """p95, errors, and what the last column is for."""


def _whiskers(
    canvas: Canvas, y: float, title: str, rows: Sequence[_Row], *, about: str, last: str
) -> float:
    """Draw a row for each, with a mark and a whisker for each kind of accuracy."""
    height = 112.0 + 42 * len(rows) if rows else 64.0
    canvas.open(title)
    _card(canvas, Box(MARGIN, y, INNER, height), title, about)
    if not rows:
        canvas.close()
        return y + height + GAP
    left, right = MARGIN + 252, MARGIN + INNER - 278
    known = [a for row in rows for a in row.accuracy if a.accuracy is not None]
    ends = [e for a in known for e in (a.low, a.high, a.accuracy) if e is not None]
    low, high = _room(min(ends), max(ends)) if ends else (0.0, 1.0)
    across = Scale(low, high, left, right)
    top, bottom = y + 76, y + height - 30
    digits = 0 if high - low > 0.05 else 1
    for tick in across.ticks(5):
        canvas.line([(across(tick), top), (across(tick), bottom)], "grid")
        canvas.text(across(tick), bottom + 17, percent(tick, digits), "soft", 11, "middle")
    _legend(canvas, MARGIN + INNER - 18, y + 28,
            [(kind, kind, "", _FORMS[kind]) for kind in KINDS])  # fmt: skip
    for name, back in (("p95", 208), ("errors", 126), (last, 18)):
        canvas.text(MARGIN + INNER - back, top - 6, name, "soft", 11, "end")
    at = top
    for row in rows:
        canvas.text(MARGIN + 18, at + 18, fit(row.name, 216, 13), "ink", 13, bold=True)
        canvas.text(MARGIN + 18, at + 33, fit(row.about, 224, 11), "soft", 11)
        for place, kind in enumerate(KINDS):
            _whisker(canvas, of_kind(row.accuracy, kind), across, at + 10 + 11 * place)
        for words, back in zip(row.cells, (208, 126, 18), strict=True):
            canvas.text(MARGIN + INNER - back, at + 25, words, "ink", 12, "end")
        at += 42
        canvas.line([(MARGIN + 18, at), (MARGIN + INNER - 18, at)], "grid")
    canvas.close()
    return y + height + GAP


def _whisker(canvas: Canvas, view: AccuracyView, across: Scale, y: float) -> None:
    if view.accuracy is None:
        return
    if view.low is not None and view.high is not None:
        ends: list[Point] = [(across(view.low), y), (across(view.high), y)]
        canvas.line(ends, view.kind, width=3, opacity=0.45)
    words = f"{view.kind} {percent(view.accuracy)} ({between(view)})"
    canvas.dot(across(view.accuracy), y, view.kind, form=_FORMS[view.kind], size=4, hint=words)
