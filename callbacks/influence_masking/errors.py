"""The exception of this package."""


class MaskingError(ValueError):
    """A mask cannot be made, read or applied as asked.

    Its message gives the fault, what was found and what to do.
    """
