"""Order and look of datasets and arms: the same in every table and figure, whichever of them are there."""

from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

DATASET_ORDER = ("sst2", "agnews", "dbpedia", "yelp")

COLOURS = {
    "baseline": "#000000",
    "baseline_converged": "#7F7F7F",
    "influence": "#D55E00",
    "influence_highest": "#0072B2",
    "taylor_highest": "#882255",
    "random": "#88CCEE",
    "random_matched": "#44AA99",
    "magnitude_lowest": "#117733",
    "snip_lowest": "#CC6677",
    "shuffled_labels": "#999933",
    "influence_tuned": "#E69F00",
    "lora": "#332288",
    "full_ft": "#AA4499",
}
"""By arm, from the palettes of Okabe and Ito and of Paul Tol, which the colour-blind can tell apart."""

OTHER_COLOURS = ("#661100", "#6699CC", "#DDCC77", "#4477AA")

HEAD = "_head"
"""Ending of the arms that tune the head under a mask: the colour of the mask, another marker."""

ARM_ORDER = tuple(name for arm in COLOURS for name in (arm, arm + HEAD))


class Look(NamedTuple):
    """How an arm is drawn: `o` where the backbone and head stay, `^` where the head is tuned, `D` where more is."""

    colour: str
    marker: str
    line: str


def look(arm: str) -> Look:
    """The look of an arm, which depends on nothing but its name."""
    mask = arm.removesuffix(HEAD)
    colour = COLOURS.get(mask) or OTHER_COLOURS[crc32(mask.encode()) % len(OTHER_COLOURS)]
    if arm != mask or arm == "baseline_converged":
        return Look(colour, "^", "--")
    return Look(colour, "D" if arm in ("influence_tuned", "lora", "full_ft") else "o", "-")


def rank(order: tuple[str, ...]) -> Callable[[str], tuple[int, str]]:
    """A key that sorts by an order, then by name."""
    return lambda name: (order.index(name) if name in order else len(order), name)
