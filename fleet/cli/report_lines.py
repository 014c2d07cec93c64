"""A report on a model as lines of text. Pure: the same report, the same screen."""

from fleet.cli.views import Lines, table
from fleet.core.report_views import (
    KINDS,
    AccuracyView,
    CohortView,
    Kind,
    ReleaseReportView,
    ReportView,
)
from fleet.core.report_words import (
    change_in_words,
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

MAX_ROWS = 20

_RESTS_ON: dict[Kind, str] = {
    "labelled": "label", "golden": "sample", "estimated": "answer",
}  # fmt: skip


def report(view: ReportView) -> Lines:
    """Return `fleet model report`: one release in full, or all of them side by side."""
    if view.version is not None and view.releases:
        return _one(view, view.releases[0])
    return _all(view)


def _one(view: ReportView, release: ReleaseReportView) -> Lines:
    head = f"{view.model}@{release.version}  {_when(view)}"
    if not release.requests and not any(each.samples for each in release.accuracy):
        return [head, "  no answers in this time"]
    facts = [
        ("answers", _answers(release)),
        *((kind, _accuracy_whole(of_kind(release.accuracy, kind))) for kind in KINDS),
        ("pushed as", "" if release.pushed_accuracy is None else percent(release.pushed_accuracy)),
        ("change", _change(release)),
        ("labels", _labels(release)),
        ("calibration", _calibration(release)),
        ("latency", _latency(release)),
        ("errors", _errors(release)),
        ("conformity", _conformity(release)),
        ("challengers", _shadow(release)),
        ("off by", _values(release)),
        *((each.name.replace("_", " "), rate(each.value, each.unit)) for each in release.rates),
        ("counted", ", ".join(f"{whole(e.count)} {e.name}" for e in release.outcomes)),
    ]
    lines = [head, *(f"  {name:<11} {text}" for name, text in facts if text)]
    for part in (_classes(release), _mistakes(release), _drift(release), _cohorts(view, release)):
        lines += ["", *part] if part else []
    return lines


def _all(view: ReportView) -> Lines:
    head = f"{view.model}  {_when(view)}, {plural(len(view.releases), 'release')}"
    rows = [
        (
            f"{view.model}@{each.version}",
            whole(each.devices),
            short(each.requests),
            *(accuracy(of_kind(each.accuracy, kind)) for kind in KINDS),
            milliseconds(each.latency.p50_ms),
            milliseconds(each.latency.p95_ms),
            milliseconds(each.latency.p99_ms),
            percent(each.errors / each.requests if each.requests else None, 2),
            _moved(each),
            _against(each),
        )
        for each in view.releases
    ]
    heads = (
        "RELEASE", ">DEVICES", ">ANSWERS", "LABELLED", "GOLDEN", "ESTIMATED", ">P50", ">P95",
        ">P99", ">ERRORS", "DRIFT", "AGAINST ITS PARENT",
    )  # fmt: skip
    lines = [head, "", *table(heads, rows)]
    if view.by is not None:
        for each in view.releases:
            part = _cohorts(view, each)
            lines += ["", f"{view.model}@{each.version}", *part] if part else []
    return lines


def accuracy(view: AccuracyView) -> str:
    """Return `98.3% (97.1-99.0)`, a `~` before what nobody checked, or why there is none."""
    if view.accuracy is None:
        return "-" if view.note in ("", "no labels", "not run", "no estimate") else view.note
    words = f"{'~' if view.kind == 'estimated' else ''}{percent(view.accuracy)}"
    if view.low is None or view.high is None:
        return f"{words} (too few)"
    return f"{words} ({100 * view.low:.1f}-{100 * view.high:.1f})"


def _accuracy_whole(view: AccuracyView) -> str:
    if view.accuracy is None:
        return view.note
    on = f"{plural(view.samples, _RESTS_ON[view.kind])}"
    on += f" on {plural(view.devices, 'device')}" if view.devices else ""
    said = {"labelled": "", "golden": "the same everywhere, ",
            "estimated": "by confidence, nobody checked: "}[view.kind]  # fmt: skip
    few = f"; {view.note}" if view.note else ""
    return f"{accuracy(view)}  {said}{on}{few}"


def _when(view: ReportView) -> str:
    return f"{moment(view.since)} to {moment(view.until)} UTC"


def _answers(release: ReleaseReportView) -> str:
    words = f"{whole(release.requests)} on {plural(release.devices, 'device')}"
    return words + (f", {', '.join(release.variants)}" if release.variants else "")


def _change(release: ReleaseReportView) -> str:
    change = release.change
    if change is None:
        return ""
    words = []
    if change.accuracy is not None:
        words.append(f"{change_in_words(change.accuracy, change.low, change.high)} labelled")
    if change.p95_ms is not None:
        words.append(f"p95 {change.p95_ms:+.2g} ms")
    if change.error_share is not None:
        words.append(f"errors {100 * change.error_share:+.2f} points")
    return f"against {change.parent}: {', '.join(words)}" if words else ""


def _against(release: ReleaseReportView) -> str:
    change = release.change
    if change is None or change.accuracy is None:
        return "-"
    return f"{change.parent}: {change_in_words(change.accuracy, change.low, change.high)}"


def _labels(release: ReleaseReportView) -> str:
    labels = release.labels
    if labels.coverage is None or not labels.labelled:
        return ""
    words = [f"{percent(labels.coverage)} of answers have one"]
    if labels.gap is not None:
        words.append(
            f"confidence {percent(labels.confidence_labelled)} there and"
            f" {percent(labels.confidence)} in all, gap {100 * labels.gap:+.1f} points"
            + (": no random sample" if labels.typical is False else "")
        )
    if labels.orphans:
        words.append(f"{plural(labels.orphans, 'label')} came too late")
    return "; ".join(words)


def _calibration(release: ReleaseReportView) -> str:
    view = release.calibration
    if view.error is None:
        return ""
    words = f"expected error {percent(view.error)} on {plural(view.answers, 'labelled answer')}"
    if view.by_chance is not None:
        words += f" ({percent(view.by_chance)} by chance)"
    if view.overconfidence is not None:
        way = "overconfident" if view.overconfidence >= 0 else "underconfident"
        words += f", {100 * abs(view.overconfidence):.1f} points {way}"
    return words


def _latency(release: ReleaseReportView) -> str:
    view = release.latency
    if view.p50_ms is None:
        return ""
    words = (
        f"p50 {milliseconds(view.p50_ms)}, p95 {milliseconds(view.p95_ms)},"
        f" p99 {milliseconds(view.p99_ms)}"
    )
    if view.limit_ms is None:
        return words
    missed = f"{whole(view.slo_misses)} over {view.limit_ms:g} ms ({percent(view.miss_share, 2)})"
    return f"{words}; {missed}"


def _errors(release: ReleaseReportView) -> str:
    share = percent(release.errors / release.requests if release.requests else None, 2)
    return f"{whole(release.errors)} ({share}), {whole(release.drops)} dropped in the queue"


def _conformity(release: ReleaseReportView) -> str:
    view = release.golden
    if view is None:
        return ""
    return (
        f"{whole(view.flips)} flipped and {whole(view.deviating)} deviating of"
        f" {whole(view.samples)} golden answers in {plural(view.runs, 'run')}"
    )


def _shadow(release: ReleaseReportView) -> str:
    view = release.shadow
    if view is None:
        return ""
    return (
        f"{plural(view.pairs, 'pair')}, {whole(view.disagreements)} disagreed; of"
        f" {whole(view.labelled)} labelled {whole(view.better)} better, {whole(view.worse)} worse"
    )


def _values(release: ReleaseReportView) -> str:
    view = release.values
    if view is None or view.p50 is None or view.p95 is None:
        return ""
    return f"{view.p50:.3g} (half), {view.p95:.3g} (95%) in {plural(view.answers, 'number')}"


def _classes(release: ReleaseReportView) -> Lines:
    if not release.classes:
        return []
    rows = sorted(release.classes, key=lambda each: (each.recall is None, each.recall or 0.0))
    shown = [
        (
            printable(each.name),
            whole(each.labels),
            percent(each.recall),
            percent(each.precision),
            whole(each.predicted),
        )
        for each in rows[:MAX_ROWS]
    ]
    lines = table(("CLASS", ">LABELS", ">RECALL", ">PRECISION", ">ANSWERS"), shown)
    return lines + _more(len(rows)) + _noised(release)


def _noised(release: ReleaseReportView) -> Lines:
    rows = [each for each in release.classes if each.noised is not None]
    if not rows or release.epsilon is None:
        return []
    shown = [
        (
            printable(each.name),
            whole(each.noised or 0),
            f"{each.noise_deviation or 0:.3g}",
        )
        for each in rows[:MAX_ROWS]
    ]
    days = max(1.0, ((release.last or 0) - (release.first or 0)) / 86_400) * max(1, release.devices)
    return [
        "",
        *table(("CLASS", ">ANSWERS, NOISED", ">DEVIATION"), shown),
        *_more(len(rows)),
        f"privacy: epsilon {release.epsilon:.3g} spent, {release.epsilon / days:.3g} a device and"
        " day",
    ]


def _mistakes(release: ReleaseReportView) -> Lines:
    if not release.mistakes:
        return []
    rows = [
        (printable(each.true), printable(each.answered), whole(each.count), percent(each.share))
        for each in release.mistakes[:10]
    ]
    return table(("TRUE", "TAKEN FOR", ">TIMES", ">OF ITS LABELS"), rows)


def _drift(release: ReleaseReportView) -> Lines:
    if not release.drift:
        return []
    rows = [
        (
            printable(each.name),
            whole(each.samples),
            _number(each.effect, 3),
            _number(each.js, 3),
            _number(each.psi, 2),
            p_in_words(each.q),
            each.note or ("moved" if each.drifted else "as before"),
        )
        for each in release.drift[:MAX_ROWS]
    ]
    heads = ("FEATURE", ">SAMPLES", ">EFFECT", ">JS", ">PSI", ">Q", "AGAINST THE BASELINE")
    return table(heads, rows) + _more(len(release.drift))


def _cohorts(view: ReportView, release: ReleaseReportView) -> Lines:
    if view.by is None or not (release.cohorts or release.cohorts_withheld):
        return []
    note = [words] if (words := folded(view, release)) else []
    if not release.cohorts:
        return note
    rows = [_cohort(each) for each in release.cohorts[:MAX_ROWS]]
    heads = (
        view.by.upper(), ">DEVICES", ">ANSWERS", "LABELLED", "GOLDEN", "ESTIMATED", ">P95",
        ">ERRORS", "DRIFT",
    )  # fmt: skip
    return table(heads, rows) + _more(len(release.cohorts) + release.cohorts_left_out) + note


def _cohort(each: CohortView) -> tuple[str, ...]:
    drift = "-"
    if each.drifted is not None:
        drift = f"{each.drifted} moved" + (f": {each.worst_feature}" if each.drifted else "")
    return (
        printable(each.group) or "(none)",
        whole(each.devices),
        short(each.requests),
        *(accuracy(of_kind(each.accuracy, kind)) for kind in KINDS),
        milliseconds(each.latency.p95_ms),
        percent(each.errors / each.requests if each.requests else None, 2),
        drift,
    )


def printable(text: str) -> str:
    """Return what others call things without what would steer a terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _moved(release: ReleaseReportView) -> str:
    if not release.drift:
        return "-"
    return f"{sum(each.drifted for each in release.drift)} of {len(release.drift)} moved"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _more(rows: int) -> Lines:
    return [f"and {rows - MAX_ROWS} more: --json shows all"] if rows > MAX_ROWS else []
