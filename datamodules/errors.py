"""The one exception that a user's mistake, or missing data, raises."""


class DataError(ValueError):
    """Data that cannot be had, read or split as asked; the message says what was found and what to do."""

    is_user_error = True
