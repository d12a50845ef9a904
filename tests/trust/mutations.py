"""Ways to break a file: at the level of its bytes, and at the level of what its JSON or YAML says."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lightning_app.errors import user_mistake

Outcome = tuple[Any, str | None]
"""What a call returned, and the message by which it refused; one of them is None."""


def outcome(call: Callable[[], Any]) -> Outcome:
    """Call; an exception that is no user's mistake is a fault of ours, and gets through."""
    try:
        return call(), None
    except Exception as error:
        if mistake := user_mistake(error):
            return None, str(mistake)
        raise


def read_broken(file: Path, content: bytes, read: Callable[[Path], Any]) -> Outcome:
    """Read a file with another content; it is afterwards what it was."""
    whole = file.read_bytes()
    file.write_bytes(content)
    try:
        return outcome(lambda: read(file))
    finally:
        file.write_bytes(whole)


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


def examples(count: int) -> settings:
    """So many examples, the same in every run; a file on disk is put back after each."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=checks)


@st.composite
def broken_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Return a file with one to three bytes changed, or cut, or with bytes put in."""
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
    """Return a copy of what JSON or YAML holds with one to three values, names or entries changed."""
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
