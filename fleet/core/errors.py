"""What an operator has to hear: one line that says what is wrong, and one what to do."""


class FleetError(Exception):
    """Ends a command with `exit_code`, after its words and the next step were shown."""

    def __init__(self, error: str, next_step: str = "", exit_code: int = 1) -> None:
        """Keep what is wrong, the next command to try, and what the program ends with."""
        super().__init__(error)
        self.error = error
        self.next_step = next_step
        self.exit_code = exit_code
