"""Image classifiers of well-known shapes and their data: what compression is measured on besides speech."""

from asrkit.compress.vision.images import ImageConfig, ImageLoader, read_images
from asrkit.compress.vision.networks import Classifier, NetworkConfig, build_network, load_classifier

__all__ = [
    "Classifier",
    "ImageConfig",
    "ImageLoader",
    "NetworkConfig",
    "build_network",
    "load_classifier",
    "read_images",
]
