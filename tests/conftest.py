"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of real corpora: `$ASRKIT_CORPORA`, or `../shared/corpora` beside the repository."""
    folder = Path(os.environ.get("ASRKIT_CORPORA", REPOSITORY.parent / "shared" / "corpora"))
    if not folder.is_dir():
        pytest.skip(f"no corpora at {folder}; set ASRKIT_CORPORA")
    return folder


def _missing(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _not_audio(path: Path) -> None:
    path.write_text("this is text\n" * 99)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


def _not_a_number(path: Path) -> None:
    samples, rate = soundfile.read(path)
    samples[7000] = np.nan
    soundfile.write(path, samples, rate, subtype="FLOAT")


@pytest.fixture(params=[_missing, _empty, _not_audio, _truncated, _not_a_number], ids=lambda f: f.__name__.strip("_"))
def damage(request) -> Callable[[Path], None]:
    """A function that spoils an audio file, each way in turn."""
    return request.param


@pytest.fixture(scope="session")
def tones() -> Callable[..., Tensor]:
    """A function that makes `seconds` of tones that change five times a second, in a little noise, at 16 kHz."""

    def make(seconds: float, seed: int = 0) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        size = round(16000 * seconds)
        frequencies = 200 + 3800 * torch.rand(size // 3200 + 1, generator=draw)
        phases = torch.cumsum(2 * torch.pi / 16000 * frequencies.repeat_interleave(3200)[:size].double(), dim=0)
        return 0.3 * phases.sin().float() + 0.01 * torch.randn(size, generator=draw)

    return make


@pytest.fixture(scope="session")
def make_experiment(tones) -> Callable[..., Path]:
    """A function that makes an experiment directory with a small model that hears much and understands nothing.

    The weights are random, but scaled so that the labels follow the audio; otherwise it would always say the same.
    """
    from asrkit.cli.train import ExperimentConfig
    from asrkit.config import write_config
    from asrkit.data.features import Fbank, FeatureConfig
    from asrkit.models.checkpoint import save_weights
    from asrkit.models.transducer import BLANK, Transducer, TransducerConfig
    from asrkit.nn.decoders import PredictorConfig
    from asrkit.nn.encoders import EncoderConfig
    from asrkit.text.tokenizer import char_tokenizer

    @torch.no_grad()
    def make(folder: Path, kind: str = "conformer") -> Path:
        torch.manual_seed(0)
        tokenizer = char_tokenizer(["abcd"])
        encoder = EncoderConfig(
            kind=kind,
            dim=16,
            layers=2,
            heads=2,
            feedforward_dim=16,
            kernel_size=5,
            subsampling_channels=4,
            chunk_sizes=(0, 8),
            left_context=16,
        )
        predictor = PredictorConfig(dim=16)
        sizes = {"joiner_dim": 16, "vocab_size": tokenizer.vocab_size, "num_mel_bins": 20}
        config = ExperimentConfig(
            features=FeatureConfig(16000, 20), model=TransducerConfig(encoder, predictor, **sizes)
        )
        model = Transducer(config.model).eval()
        features = Fbank(config.features)(tones(9.0, seed=1))[None]  # (1, T, D)
        projection, output = model.joiner.project_encoder, model.joiner.output
        projected = projection(model.encoder(features, torch.tensor([features.shape[1]]))[0])[0]  # (T', J)
        projection.weight /= projected.std(dim=0)[:, None]
        projection.bias.copy_((projection.bias - projected.mean(dim=0)) / projected.std(dim=0))
        output.weight *= 4
        output.bias[BLANK] += 1

        write_config(config, folder / "config.yaml")
        tokenizer.save(folder / "lang")
        save_weights(model, folder / "model.pt")
        return folder

    return make


@pytest.fixture(scope="session")
def experiment(make_experiment, tmp_path_factory) -> Path:
    """An experiment directory with an untrained conformer; not to be written to."""
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    """An experiment directory with an untrained image classifier, half of whose filters are zero; not written to."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra 'vision')")
    from asrkit.cli.vision import VisionExperiment
    from asrkit.compress.vision.images import ImageConfig
    from asrkit.compress.vision.networks import Classifier, NetworkConfig
    from asrkit.config import write_config
    from asrkit.models.checkpoint import save_weights

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    config = VisionExperiment(ImageConfig("digits", size=16), NetworkConfig("vgg16", width=0.125, size=16))
    model = Classifier(config.network)
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
            for parameter in module.parameters():
                parameter.data[::2] = 0.0
    write_config(config, folder / "config.yaml")
    save_weights(model, folder / "model.pt")
    return folder
