"""The one exception of this package."""


class MaskingError(ValueError):
    """A mask cannot be made, read or applied as asked.

    Its message says what was asked, what was found and what to do, in that order.
    """
