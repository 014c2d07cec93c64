"""Who is told of alerts beyond the broker, and what is called because of them."""

from fleet.shell.notices.notices import Notices

__all__ = ["Notices"]
