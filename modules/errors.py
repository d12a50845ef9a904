"""Errors that a user can fix. The application prints errors with `is_user_error` without a traceback."""


class OptionError(ValueError):
    """An option of an arm is out of its range."""

    is_user_error = True


def require(holds: bool, name: str, found: object, wanted: str) -> None:
    """Refuse an option of an arm unless it is in its range.

    Raises:
        OptionError: If it is not.
    """
    if not holds:
        raise OptionError(f"model.{name} is {found!r}, but must be {wanted}.")


class BackboneError(ValueError):
    """A backbone cannot be loaded, or an arm cannot be built on it."""

    is_user_error = True


class StartError(ValueError):
    """The head checkpoint is missing or does not fit the model or the data."""

    is_user_error = True


class CheckpointError(ValueError):
    """A checkpoint is damaged, belongs to another condition, or cannot be resumed."""

    is_user_error = True
