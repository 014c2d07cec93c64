"""What the HTTP API may ask about alerts. Every method may be called from any thread."""

from typing import Protocol

from fleet.core.alert_views import AlertPolicyView, AlertView, SilenceRequest, SilenceView
from fleet.core.views import ReleaseView


class AlertsPort(Protocol):
    """Alerts and quarantine, as the API sees them."""

    def alerts(self, *, resolved: bool) -> list[AlertView]:
        """Return alerts, those that fire first; those that are over only when `resolved`."""

    def alert(self, id: str) -> AlertView:
        """Return one alert with its actions.

        Raises:
            Refusal: 404.
        """

    def acknowledge(self, id: str, by: str, note: str) -> AlertView:
        """Note that an operator cares: nothing more is done by itself.

        Raises:
            Refusal: 404; 409, it is over.
        """

    def silences(self) -> list[SilenceView]:
        """Return the silences that hold, the next to end first."""

    def silence(self, wanted: SilenceRequest) -> SilenceView:
        """Hear nothing of a rule or a subject for a while, and let nothing be done.

        Raises:
            Refusal: 422, no such rule; 409, too many.
        """

    def unsilence(self, id: str) -> SilenceView:
        """Take a silence back.

        Raises:
            Refusal: 404.
        """

    def policy(self) -> AlertPolicyView:
        """Return the rules that hold, and whom alerts are told to."""

    def quarantine(self, model: str, version: int, reason: str) -> ReleaseView:
        """Let no new rollout bring a release, and pause one that does.

        Raises:
            Refusal: 404; 409, it is in quarantine already.
        """

    def release(self, model: str, version: int) -> ReleaseView:
        """Take a release out of quarantine.

        Raises:
            Refusal: 404; 409, it is not in quarantine.
        """
