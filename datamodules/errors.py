"""The exception for missing data and for mistakes in it."""


class DataError(ValueError):
    """Data that cannot be loaded, read or split; the message says what was found and what to do."""

    is_user_error = True
