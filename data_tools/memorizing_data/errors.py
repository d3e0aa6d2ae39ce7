"""What goes wrong because of what a person asked for, said in one sentence."""


class InputError(ValueError):
    """A wish cannot be met. The message says what was found, expected and to do."""
