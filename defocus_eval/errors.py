"""The one error that users of this package are meant to see."""


class InputError(ValueError):
    """An input is missing, broken or not what it should be. The message names the cause (file, entry) and the cure."""
