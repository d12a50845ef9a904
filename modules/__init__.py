"""LightningModules of the study: one shared classifier, one small file an arm.

Read in this order: `backbone` (what is loaded), `classifier` (batch -> logits -> loss -> metrics), `start` (the head
that every arm starts from), then the arms `baseline`, `influence`, `lora` and `full_ft`, and the `sweep`.
"""

from modules.baseline import Baseline
from modules.caches import Caches
from modules.classifier import Classifier
from modules.errors import BackboneError, CheckpointError, OptionError, StartError
from modules.full_ft import FullFineTuning
from modules.influence import Influence
from modules.lora import LoRA
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
]
