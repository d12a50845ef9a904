"""Order and look of arms, from what their records say: the same in every table and figure."""

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


class Look(NamedTuple):
    """How an arm is drawn."""

    color: str
    marker: str
    line: str


def looks(results: pd.DataFrame) -> dict[str, Look]:
    """The look of each arm, which depends on nothing but its record."""
    return {record["arm"]: _look(record) for record in results.drop_duplicates("arm").to_dict("records")}


def _look(record: Mapping[str, Any]) -> Look:
    name, _, _ = record["arm"].partition("+")  # an arm has one color, whatever is trained under its mask
    color = record["color"]
    if not is_color_like(color):
        color = PALETTE[crc32(name.encode()) % len(PALETTE)]
    if record["role"] == "baseline":
        return Look(color, "o", "-")
    return Look(color, MARKERS[record["trains"]], "--" if record["trains"] == "head" else "-")


def order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """A key that sorts conditions by dataset, then arms by role (those with a verdict first) and label, then seeds."""
    role = get_args(Role).index(record["role"])
    return record["dataset"], role, record["control"] is None, record["arm"], record["seed"]
