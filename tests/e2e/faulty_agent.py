"""The agent on a disk that can be told to fail: `python -m tests.e2e.faulty_agent`, as the agent.

A file `fault` beside the data directory, with an errno and a number, arms it: of the operations on
transfers and blobs that follow, so many pass and the next one fails.
"""

import sys
from pathlib import Path

from agent.__main__ import main
from agent.config import load_config
from tests.operations import DiskTap, Fault, Operation

GUARDED = ("partial/", "blobs/")


class Orders:
    """Arms a fault whenever the file asks for one, and takes the file away when it struck."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._fault = Fault(0, 0)
        self._text = ""

    def before(self, operation: Operation) -> None:
        text = self._file.read_text() if self._file.exists() else ""
        if text != self._text:
            self._text = text
            code, skip = map(int, text.split()) if text else (0, 0)
            self._fault = Fault(code, skip, GUARDED, armed=bool(text))
        try:
            self._fault.before(operation)
        except OSError:
            self._file.unlink()
            raise

    def after(self, operation: Operation) -> None:
        pass


def run() -> int:
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    root = load_config(config).data_dir
    with DiskTap(root, Orders(root.with_name("fault"))):
        return main()


if __name__ == "__main__":
    sys.exit(run())
