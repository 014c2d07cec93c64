"""What the documents say about the code is so, and the house keeps its own rules."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

import wire.alert
import wire.command
import wire.manifest
import wire.sample
import wire.seal
import wire.telemetry
import wire.transfer
import wire.twin
from agent.core.lifecycle import TRANSITIONS
from fleet.core.views import RolloutStatus
from wire import VERSION
from wire.codec import Document, Part
from wire.topics import table
from wire.twin import Phase

ROOT = Path(__file__).parents[1]
FLOW = (ROOT / "docs/flow.md").read_text()
WIRE = (ROOT / "docs/wire.md").read_text()


def rows(text: str, first: str) -> list[list[str]]:
    """Return the cells of the table whose heading begins with `first`, without its two heads."""
    found = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found is not None, f"no table beginning with {first}"
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in found[1].splitlines()]  # fmt: skip


def arrows(heading: str) -> set[tuple[str, str]]:
    """Return the arrows of the state diagram under `heading` in docs/flow.md."""
    section = FLOW.partition(f"## {heading}\n")[2]
    diagram = section.partition("```mermaid\n")[2].partition("```")[0]
    found = re.findall(r"^ +(\S+) --> (\S+)$", diagram, re.MULTILINE)
    assert len(found) == diagram.count("-->") > 0
    return set(found)


def test_the_drawn_deployment_is_the_one_the_agent_follows():
    drawn = arrows("A deployment, on a device")

    inner = {(before, after) for before, after in drawn if "[*]" not in (before, after)}
    ends = {before for before, after in drawn if after == "[*]"}
    assert inner == {(str(a), str(b)) for a, after in TRANSITIONS.items() for b in after}
    assert ends == {str(phase) for phase in Phase if phase.final}
    assert ends == {str(phase) for phase, after in TRANSITIONS.items() if not after}
    assert {phase for arrow in drawn for phase in arrow} - {"[*]"} == set(map(str, Phase))


def test_every_phase_is_explained_once():
    assert [row[0].strip("`") for row in rows(FLOW, "phase")] == [str(phase) for phase in Phase]


def test_the_drawn_rollout_has_the_states_that_rollouts_have():
    drawn = arrows("A rollout, in the fleet")

    assert {state for arrow in drawn for state in arrow} - {"[*]"} == set(map(str, RolloutStatus))
    assert {before for before, after in drawn if after == "[*]"} == {
        str(status) for status in RolloutStatus if status.final
    }
    assert all(after == "[*]" for before, after in drawn if before == "aborted")


def test_every_drawn_step_of_a_rollout_is_explained():
    told = {
        (before.strip("` "), after.strip("`"))
        for befores, after, _ in rows(FLOW, "from")
        for before in befores.split(",")
    }

    assert told == {arrow for arrow in arrows("A rollout, in the fleet") if "[*]" not in arrow}


def test_the_documented_topics_are_the_topics():
    documented = [tuple(cell.strip("`") for cell in row) for row in rows(WIRE, "topic")]

    assert documented == list(table())


def values() -> list[type[BaseModel]]:
    return sorted(
        {*Document.__subclasses__(), *Part.__subclasses__()}, key=lambda value: value.__name__
    )


@pytest.mark.parametrize("value", values(), ids=lambda value: value.__name__)
def test_the_documented_fields_are_the_fields(value):
    section = WIRE.partition(f"\n### {value.__name__}\n")[2].partition("\n### ")[0]

    documented = {row[0].strip("`"): row[2] for row in rows(section, "field")}

    fields = {n: f for n, f in value.model_fields.items() if n != "schema_version"}
    assert list(documented) == list(fields)
    assert {name for name, default in documented.items() if default == "required"} == {
        name for name, field in fields.items() if field.is_required()
    }
    for name, default in documented.items():
        if default.startswith("`"):
            assert default.strip("`") == str(fields[name].default), name


def test_the_documented_reasons_and_limits_are_in_the_code():
    limits = {row[0]: row[1] for row in rows(WIRE, "limit")}

    def number(name: str) -> int:
        return int(limits[name].split()[0].replace(",", ""))

    assert number("a document, as it travels and inflated") == wire.codec.MAX_DOCUMENT_BYTES
    assert number("chunk, unless the offer says otherwise") == wire.transfer.CHUNK_BYTES
    assert number("frames in one request") == wire.transfer.MAX_WINDOW_CHUNKS
    assert number("chunks in a transfer") == wire.transfer.MAX_CHUNKS


def test_the_glossary_is_in_order_and_names_nothing_twice():
    words = [row[0] for row in rows((ROOT / "docs/glossary.md").read_text(), "word")]

    assert words == sorted(set(words))


@pytest.mark.parametrize(
    "page",
    sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "systemd/README.md",
            *(ROOT / "docs").rglob("*.md")]),
    ids=lambda page: str(page.relative_to(ROOT)),
)  # fmt: skip
def test_every_link_and_every_path_in_a_page_leads_somewhere(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:wire|agent|fleet|scripts|tests|systemd|docs)/[\w./-]*\w)/?`", text)

    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]

    assert missing == []


def test_every_decision_has_its_four_parts_and_its_number():
    pages = sorted((ROOT / "docs/adr").glob("*.md"))

    assert [page.name[:4] for page in pages] == [f"{n:04}" for n in range(1, len(pages) + 1)]
    for page in pages:
        heads = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
        assert heads == ["Context", "Options", "Choice", "What would change our mind"], page.name
        assert page.read_text().startswith(f"# {page.name[:4]} ")


def test_pins_are_names_and_versions_and_cover_what_is_asked_for():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][\w.]*", pin) for pin in pins), pins

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"]]
    for name in ("onnx", "tflite", "tflite-legacy", "fleet", "dev"):
        asked += [each for each in extras[name] if not each.startswith("farflung[")]
    names = {re.match(r"[A-Za-z0-9-]+", each)[0].lower() for each in asked}  # type: ignore[index]
    assert names <= {pin.partition("==")[0] for pin in pins}


def test_the_change_log_knows_the_version_that_is_built():
    assert importlib.metadata.version("farflung") == VERSION
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()
