"""asrkit, a speech recognition toolkit."""

__version__ = "0.1.0"


def load(folder, beam: int = 4):
    """Load the recogniser of an experiment directory: `asrkit.load("exp/asr").transcribe("a.wav")`.

    See asrkit.search.recogniser.load.
    """
    from asrkit.search.recogniser import load as load_recogniser  # the import of torch waits until it is needed

    return load_recogniser(folder, beam)
