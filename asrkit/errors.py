"""The one exception that means "the user can mend this"."""


class InputError(Exception):
    """Bad input: a file, line, key or option that the message names in one line.

    The command line prints the message alone and exits with status 1; every other exception is a defect of asrkit.
    """
