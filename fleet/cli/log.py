"""The controller's log: a line for everything, and no traceback unless it is asked for."""

import logging
import os
import traceback


class OneLine(logging.Formatter):
    """Writes an exception behind its message: what it was, and in which line of which file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            place = traceback.extract_tb(error.__traceback__)[-1:]
            where = "".join(f" ({at.filename}:{at.lineno})" for at in place)
            record.msg = f"{record.getMessage()}: {type(error).__name__}: {error}{where}"
            record.args = ()
            record.exc_info = record.exc_text = None
        return super().format(record)


def log_to_stderr() -> None:
    """Start the log. With FARFLUNG_DEBUG=1 tracebacks are whole."""
    shape = "%(levelname)s %(message)s"
    handler = logging.StreamHandler()
    debug = os.environ.get("FARFLUNG_DEBUG") == "1"
    handler.setFormatter(logging.Formatter(shape) if debug else OneLine(shape))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
