"""The order of arms and their style, derived from their records: the same in every table and figure."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args
from zlib import crc32

import pandas as pd
from matplotlib.colors import is_color_like

from lightning_app.results.identity import Role

PALETTE = (
    *("#0072B2", "#882255", "#88CCEE", "#44AA99", "#117733", "#CC6677", "#999933", "#E69F00", "#332288", "#AA4499"),
    *("#661100", "#6699CC", "#DDCC77", "#4477AA"),
)
"""For arms without a color, from the palettes of Okabe and Ito and of Paul Tol, which are safe for the color-blind."""

MARKERS = {"none": "o", "head": "^", "adapter": "D", "all": "D"}
"""By what an arm trains, except for baselines, which are drawn as `o`."""


class ArmStyle(NamedTuple):
    """How an arm is drawn."""

    color: str
    marker: str
    line: str


def arm_styles(results: pd.DataFrame) -> dict[str, ArmStyle]:
    """Return the style of each arm, which depends on nothing but its record."""
    return {record["arm"]: _look(record) for record in results.drop_duplicates("arm").to_dict("records")}


def _look(record: Mapping[str, Any]) -> ArmStyle:
    name, _, _ = record["arm"].partition("+")  # an arm has one color, whatever is trained under its mask
    color = record["color"]
    if not is_color_like(color):
        color = PALETTE[crc32(name.encode()) % len(PALETTE)]
    if record["role"] == "baseline":
        return ArmStyle(color, "o", "-")
    return ArmStyle(color, MARKERS[record["trains"]], "--" if record["trains"] == "head" else "-")


def sort_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that sorts by dataset, by role (arms with a verdict first), by label and by seed."""
    role = get_args(Role).index(record["role"])
    return record["dataset"], role, record["control"] is None, record["arm"], record["seed"]
