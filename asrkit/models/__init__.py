"""Whole models, by the name that a configuration gives them."""

from asrkit.models.speaker import SpeakerConfig, SpeakerNetwork
from asrkit.models.transducer import Transducer, TransducerConfig

MODELS = {"transducer": (TransducerConfig, Transducer), "speaker": (SpeakerConfig, SpeakerNetwork)}
