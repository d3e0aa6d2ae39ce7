"""Errors that end a command with one sentence."""


class InputError(ValueError):
    """Bad input: says what was found, what was expected and what to do.

    The command line prints it as one sentence and exits with status 2.
    """


class NotFiniteError(InputError):
    """The loss or the gradients of a step are infinite or not a number.

    Attributes:
      step: the first one of which that is so.
      rows: where the loss is; none if only gradients are.
    """

    def __init__(self, step: int, rows: list[int]):
        what = f"loss in rows {rows}" if rows else "gradients"
        super().__init__(f"step {step} has {what} that is not finite")
        self.step, self.rows = step, rows
