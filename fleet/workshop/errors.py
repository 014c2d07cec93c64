"""What is wrong with a file that somebody wants to push."""


class ArtifactError(Exception):
    """The file is at fault: one line that says which, what was expected, what came, what next."""
