"""LightningModules of the study: one shared classifier, and one small file per arm.

Read in this order: `families` (what differs between backbones), `backbone` (loading and pooling), `head` (the layer on
top), `classifier` (batch, logits, loss), `start` (the head that other arms start from), then the arms `baseline`,
`influence`, `lora` and `full_ft`, and the `sweep`. `caches`, `features` and `store` save time, `masking` makes the
callback of `influence` and `sweep`, and `checkpoints` checks files before they are used.
"""

from modules.baseline import Baseline
from modules.caches import Caches
from modules.classifier import Classifier
from modules.errors import BackboneError, CheckpointError, OptionError, StartError
from modules.full_ft import FullFineTuning
from modules.influence import Influence
from modules.lora import LoRA
from modules.store import TensorStore
from modules.sweep import Sweep

__all__ = [
    "BackboneError",
    "Baseline",
    "Caches",
    "CheckpointError",
    "Classifier",
    "FullFineTuning",
    "Influence",
    "LoRA",
    "OptionError",
    "StartError",
    "Sweep",
    "TensorStore",
]
