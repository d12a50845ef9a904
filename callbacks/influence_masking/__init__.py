"""Select weights by one gradient, then zero, freeze or exclusively train them: a Lightning callback and its parts."""

from influence_masking.callback import InfluenceMasking
from influence_masking.errors import MaskingError
from influence_masking.gradients.mean_gradient import Calibration, MeanGradient
from influence_masking.masks.enforcer import MaskEnforcer
from influence_masking.masks.mask import Mask, Overlap, Share
from influence_masking.options import MaskingOptions
from influence_masking.selection.candidates import DEFAULT_TARGETS, find_candidates
from influence_masking.selection.scores import SCORES
from influence_masking.snapshot import Snapshot, take_snapshot
from influence_masking.sweep import PathPoint, Stability, SweepPoint, path_scan, stability, sweep

__all__ = [
    "DEFAULT_TARGETS",
    "SCORES",
    "Calibration",
    "InfluenceMasking",
    "Mask",
    "MaskEnforcer",
    "MaskingError",
    "MaskingOptions",
    "MeanGradient",
    "Overlap",
    "PathPoint",
    "Share",
    "Snapshot",
    "Stability",
    "SweepPoint",
    "find_candidates",
    "path_scan",
    "stability",
    "sweep",
    "take_snapshot",
]
