"""The exception of this package."""


class MaskingError(ValueError):
    """A mask cannot be made, read or applied as asked.

    Its message gives the fault, what was found and what to do.
    """

    is_user_error = True  # for programs that print what a user can mend without a traceback
