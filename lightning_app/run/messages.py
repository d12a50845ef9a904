"""Mistakes in options, in one line: the key, what is wrong with it, and the nearest key that exists."""

import difflib
import re
from collections.abc import Iterable

UNKNOWN_KEY = re.compile(
    r"Group '(?P<group>[^']+)' does not accept option '(?P<member>[^']+)'"
    r"|[Oo]ption '(?P<option>[^']+)'(?: is not accepted)?"
    r"|unrecognized arguments: (?:--)?(?P<word>[^\s=]+)"
)
CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)':\n\s+(?P<cause>.+)")
KEY = re.compile(r'Parser key "([^"]+)":')
POSSIBLE = re.compile(r"(?:Expected a|Not a valid) (?!path but)(.+?)(?:\. Got value: .*|: .*)?$", re.MULTILINE)
VALUE = re.compile(r"(?:Got|Given) value: (.*)")
"""What jsonargparse writes. Its texts may change, so a test goes through every kind of mistake."""

KINDS = {
    "NoneType": "null",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "Iterable": "a list",
    "dict": "an object",
}
"""Types as a user reads them."""


def explain(message: str, known: Iterable[str]) -> str:
    """Return an error of the argument parser in one line, with the nearest of the keys that exist."""
    key = unknown_key(message)
    return explain_value(message) if key is None else explain_unknown(key, known)


def unknown_key(message: str) -> str | None:
    """Return the dotted key that the argument parser does not know, or None if the error is another one."""
    if not (found := UNKNOWN_KEY.search(message)):
        return None
    name = found["option"] or found["word"] or f"{found['group']}.{found['member']}"
    section = KEY.search(message)
    return f"{section[1]}.{name}" if section else name


def class_of(message: str) -> str | None:
    """Return the path of the class whose options an error of the argument parser is about."""
    found = CLASS.search(message)
    return found["path"] if found else None


def explain_unknown(key: str, known: Iterable[str]) -> str:
    """Say that a key does not exist, and name the nearest one that does."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if near:
        return f"There is no option {key}. Did you mean {near[0]}?"
    sections = "" if "." in key else " Most options begin with data., model. or trainer."
    return f"There is no option {key}.{sections} See --help."


def explain_value(message: str) -> str:
    """Say which key has a wrong value, what was found and what is possible."""
    keys, found = KEY.findall(message), CLASS.search(message)
    if not keys:
        return " ".join(message.split())
    key, detail = ".".join(keys[:2]), message[message.rindex(f'"{keys[-1]}":') :]
    if len(keys) > 1:
        detail = re.split(r"^    - ", detail, flags=re.MULTILINE)[0]  # what follows is about the section around the key
    elif found:
        return f"{key} cannot be {found['path']}: {found['cause']}"
    value, kinds = VALUE.search(detail), list(dict.fromkeys(map(_kind, POSSIBLE.findall(detail))))
    if value and kinds:
        shown = "null" if value[1] == "None" else repr(value[1])
        return f"{key} is {shown}, but must be {' or '.join(kinds)}."
    return f"{key}: {' '.join(detail.partition(':')[2].split())}"


def _kind(expected: str) -> str:
    """Return a type as a user writes it."""
    if choices := re.match(r"typing\.Literal\[(.*)\]", expected):
        return " or ".join(choices[1].replace("'", "").split(", "))
    if expected.startswith(("subclass of", "dot import path")):
        return "the path of a class"
    name = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", expected)
    return KINDS.get(name.partition("[")[0], name)
