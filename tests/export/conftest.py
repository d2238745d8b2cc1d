"""One exported experiment for all tests of the room."""

from pathlib import Path

import pytest

from asrkit.search.recogniser import Recogniser, load

UNKNOWN = 1


@pytest.fixture(scope="session")
def recogniser(experiment) -> Recogniser:
    recogniser = load(experiment, beam=1)
    recogniser.model.joiner.output.bias.data[UNKNOWN] = -100.0  # sherpa-onnx never says <unk>, as no trained model does
    return recogniser


@pytest.fixture(scope="session")
def exported(recogniser, tmp_path_factory) -> Path:
    """A directory that `export_onnx` wrote; not to be written to."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra 'export')")
    from asrkit.export.onnx import export_onnx

    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(recogniser, folder)
    return folder
