"""One exported experiment for all tests of the room."""

from pathlib import Path

import pytest

from asrkit.export.onnx import Chunk, export_onnx
from asrkit.search.recogniser import Recogniser, load

UNKNOWN = 1


@pytest.fixture(scope="session")
def recogniser(experiment) -> Recogniser:
    recogniser = load(experiment, beam=1)
    recogniser.model.joiner.output.bias.data[UNKNOWN] = -100.0  # sherpa-onnx never says <unk>, as no trained model does
    return recogniser


@pytest.fixture(scope="session")
def chunk() -> Chunk:
    return Chunk(8, 2)


@pytest.fixture(scope="session")
def exported(recogniser, tmp_path_factory) -> Path:
    """A directory that `export_onnx` wrote; not to be written to."""
    return _exported(recogniser, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="session")
def exported_stream(recogniser, chunk, tmp_path_factory) -> Path:
    """The same for streams."""
    return _exported(recogniser, tmp_path_factory.mktemp("onnx-stream"), chunk)


def _exported(recogniser: Recogniser, folder: Path, chunk: Chunk | None = None) -> Path:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra 'export')")
    export_onnx(recogniser, folder, chunk)
    return folder
