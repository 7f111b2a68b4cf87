"""What a command refuses, in a sentence."""


class Problem(Exception):  # noqa: N818 - it is told to a person, not raised to a program
    """What a person can mend: printed as one sentence."""
