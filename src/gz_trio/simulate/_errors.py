"""What a simulation fails with."""


class TargetError(Exception):
    """The target cannot be used; the message says why."""
