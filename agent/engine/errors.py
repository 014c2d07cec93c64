"""What goes wrong with a request, on its way to becoming an HTTP answer."""


class AnswerError(Exception):
    """The model ran and answered what no app should be given."""


class BusyError(Exception):
    """Too much waits already; the message says what."""


class HttpError(Exception):
    """A request that gets no answer but an error; the message is what its sender reads."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


def bad_request(error: str) -> HttpError:
    """Return the refusal of a request that is wrong in itself."""
    return HttpError(400, error)
