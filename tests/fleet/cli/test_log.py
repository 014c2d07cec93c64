"""What the controller's log makes of an exception."""

import io
import logging

from fleet.cli.log import OneLine


def test_an_exception_is_one_line_that_says_where() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(OneLine("%(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)

    try:
        _ = {}["disk"]
    except KeyError:
        log.exception("turn %d failed", 7)

    assert out.getvalue().startswith("ERROR turn 7 failed: KeyError: 'disk' (")
    assert out.getvalue().count("\n") == 1
    assert "test_log.py:" in out.getvalue()


def test_a_message_without_an_exception_stays_as_it_is() -> None:
    record = logging.LogRecord("test", logging.INFO, "", 0, "%s is up", ("cam-1",), None)

    assert OneLine("%(levelname)s %(message)s").format(record) == "INFO cam-1 is up"
