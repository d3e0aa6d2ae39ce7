"""The error that a person caused and can mend."""


class InputError(ValueError):
    """Bad input: says what was found, what was expected and what to do.

    The command line prints it as one sentence and exits with status 2.
    """
