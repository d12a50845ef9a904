"""Ways to break a file: at the level of its bytes, and at the level of what its JSON or YAML says."""

import copy
from typing import Any

from hypothesis import strategies as st

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.sampled_from([10**400, -1, 0, 1, 2, 0.5, 1e308, "", ".", "../../x", "/x", "=1+1", "<b>", "a\x1b[2Jb", "\ud800"]),
)
"""Values of every kind, those that code trips over among them."""


@st.composite
def broken_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with one to three bytes changed, or cut, or with bytes put in."""
    kind, place = draw(st.sampled_from(["change", "cut", "insert"])), draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:place] + content[draw(st.integers(place + 1, len(content))) :]
    if kind == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=9)) + content[place:]
    changed = bytearray(content)
    for where in [place, *draw(st.lists(st.integers(0, len(content) - 1), max_size=2))]:
        changed[where] ^= draw(st.integers(1, 255))
    return bytes(changed)


@st.composite
def broken_values(draw: st.DrawFn, content: Any) -> Any:
    """A copy of what JSON or YAML holds with one to three values, names or entries changed."""
    changed = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(changed))
        if not places:
            return draw(JUNK)
        container, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["replace", "remove", "add", "wrap"]))
        if kind == "replace":
            container[key] = draw(JUNK)
        elif kind == "wrap":
            container[key] = [container[key]]
        elif kind == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[draw(st.text(max_size=8))] = draw(JUNK)
        else:
            container.insert(key, draw(JUNK))
    return changed


def _places(value: Any) -> Any:
    """Every place within a value: its container and the key there."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
