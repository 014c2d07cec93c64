"""Every example of docs/serving.md, run against a real engine."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.engine.harness import Listeners, Release, engine
from tests.agent.engine.models import onnx_classifier

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/serving.md").read_text()
EXAMPLES = re.findall(r"```(sh|python)\n(.*?)```(?:\n```json\n(.*?)```)?", PAGE, re.DOTALL)
PROMISED = re.compile(r"print\(.*\)  # (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    folder = tmp_path_factory.mktemp("iris")
    kept = Listeners(folder)
    release = Release(
        folder / "release",
        onnx_classifier(),
        model="iris",
        version=7,
        input="measurements",
        label_names=("setosa", "versicolor", "virginica"),
    )
    with engine(kept) as started:
        started.serve(release)
        yield kept
    kept.close()


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_do_what_the_page_says(iris: Listeners, tmp_path: Path) -> None:
    told: list[Any] = []
    for language, text, answer in EXAMPLES:
        here = text.replace("127.0.0.1:8731", f"127.0.0.1:{iris.port}")
        here = here.replace("/run/farflung/api.sock", iris.path)
        if language == "python":
            said = run([sys.executable, "-W", "ignore", "-c", here], tmp_path)
            promised = PROMISED.findall(text)
            assert said.splitlines()[: len(promised)] == promised
        else:
            said = run(["bash", "-c", here.replace("curl", "curl -sS", 1)], tmp_path)
            assert bool(said) == bool(answer)
            if answer:
                assert json.loads(said) == json.loads(answer)
        told.append(said)

    assert len(told) >= 9
    assert (tmp_path / "answer").read_bytes().endswith(b"\0\0\0A\0\0\0@\0\0\x80@")
