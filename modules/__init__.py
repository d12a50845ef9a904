"""LightningModules of the study: one shared classifier, one small file an arm.

Read in this order: `backbone` (what is loaded), `classifier` (batch -> logits -> loss -> metrics), `start` (the head
that every arm starts from), then the arms `baseline`, `influence`, `lora` and `full_ft`, and the `sweep`.
"""

from modules.backbone import BackboneError
from modules.baseline import Baseline
from modules.checkpoints import CheckpointError
from modules.classifier import Classifier, OptionError
from modules.full_ft import FullFineTuning
from modules.influence import Influence
from modules.lora import LoRA
from modules.start import StartError
from modules.sweep import Sweep

__all__ = [
    "BackboneError",
    "Baseline",
    "CheckpointError",
    "Classifier",
    "FullFineTuning",
    "Influence",
    "LoRA",
    "OptionError",
    "StartError",
    "Sweep",
]
