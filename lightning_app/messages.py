"""Mistakes in options, in one line: the key, what is wrong with it, and the nearest key that exists."""

import difflib
import re
from collections.abc import Iterable

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lightning_app.errors import UsageError

UNKNOWN_KEY = re.compile(
    r"Group '(?P<group>[^']+)' does not accept option '(?P<member>[^']+)'"
    r"|[Oo]ption '(?P<option>[^']+)'(?: is not accepted)?"
    r"|unrecognized arguments: (?:--)?(?P<word>[^\s=]+)"
)
CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)':\n\s+(?P<cause>.+)")
KEY = re.compile(r'Parser key "([^"]+)":')
UNSET = re.compile(r"the following arguments are required: (.+)")
ARGUMENT = re.compile(
    r"argument (?:-\w/)?--(?P<key>[\w.]+)(?:/\S+)?: (?:expected|ignored explicit argument (?P<value>'.*'))"
)
SECTION = re.compile(r"Unable to load config '(.*)'")
POSSIBLE = re.compile(
    r"(?:(?:Expected a|Not a valid|Not of type) (?!path but)|Import path does not correspond to a )"
    r"(.+?)(?:\. Got value: .*|: .*)?$",
    re.MULTILINE,
)
VALUE = re.compile(r"(?:(?:Got|Given) value: |base 10: ')(.*?)'?$|: (\S+) does not conform", re.MULTILINE)
"""What jsonargparse writes. Its texts may change, so a test goes through every kind of mistake."""

CLASS_KEYS = ("model", "data")
"""Keys that must be a class; argparse names them in place of an option of that class."""

KINDS = {
    "NoneType": "null",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "PositiveInt": "a whole number above 0",
    "list": "a list",
    "Iterable": "a list",
    "Sequence": "a list",
    'string with form "h': "a time",
    "dict": "an object",
}
"""Types as a user reads them."""


def parse(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Parse the options of a command.

    Raises:
        UsageError: If an option does not exist or has a wrong value.
    """
    defaults = vars(parser.get_defaults().as_flat())
    try:
        options = parser.parse_args(words)
    except ArgumentError as error:
        raise UsageError(explain(str(error), defaults.keys() - {"__default_config__"})) from error
    for key, default in defaults.items():
        check_flag(key, options[key], default)
    return options


def check_flag(key: str, value: object, default: object) -> None:
    """Refuse what is not true or false where an option without a value is set in a file, which jsonargparse accepts.

    Raises:
        UsageError: If it is not.
    """
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UsageError(f"{key} is {shown(value)}, but must be true or false.")


def explain(message: str, known: Iterable[str]) -> str:
    """Return an error of the argument parser in one line, with the nearest of the keys that exist."""
    if missing := UNSET.search(message):
        section = section_of(message)
        keys = [f"{section}.{key}" if section else key.removeprefix("fit.") for key in missing[1].split(", ")]
        return f"{', '.join(keys)} must be set: there is no default."
    if argument := ARGUMENT.match(message):
        if argument["value"]:
            return f"{argument['key']} is {argument['value']}, but takes no value."
        return f"{argument['key']}{', or an option in it,' if argument['key'] in CLASS_KEYS else ''} has no value."
    key = unknown_key(message)
    return explain_value(message) if key is None else explain_unknown(key, known)


def unknown_key(message: str) -> str | None:
    """Return the dotted key that the argument parser does not know, or None if the error is another one."""
    if not (found := UNKNOWN_KEY.search(message)):
        return None
    name = found["option"] or found["word"] or f"{found['group']}.{found['member']}"
    section = section_of(message)
    return f"{section}.{name}" if section else name


def section_of(message: str) -> str | None:
    """Return the key that an error of the argument parser begins with: a section, if it is about an option in it."""
    found = KEY.search(message)
    return found[1] if found else None


def class_of(message: str) -> str | None:
    """Return the path of the class whose options an error of the argument parser is about."""
    found = CLASS.search(message)
    return found["path"] if found else None


def explain_unknown(key: str, known: Iterable[str]) -> str:
    """Say that a key does not exist, and name the nearest one that does."""
    known = [name for name in known if not key.startswith(f"{name}.")]
    if near := nearest(key, known):
        return f"There is no option {key}. Did you mean {near}?"
    has_sections = any("." in name for name in known)
    sections = " Most options begin with data., model. or trainer." if has_sections and "." not in key else ""
    return f"There is no option {key}.{sections} See --help."


def nearest(key: str, known: Iterable[str]) -> str | None:
    """Return the key that a user probably meant: a similar one in its section, or elsewhere a similar or equal name."""
    section, _, name = key.rpartition(".")
    shortest_last = sorted(known, key=lambda other: (-len(other), other))
    inside = {other.rpartition(".")[2]: other for other in shortest_last if other.rpartition(".")[0] == section}
    outside = [other for other in shortest_last if other not in inside.values()]
    last_parts = {other.rpartition(".")[2]: other for other in outside}
    for written, candidates, cutoff in (
        (name, inside, 0.6),
        (key, dict(zip(outside, outside, strict=True)), 0.7),
        (name, last_parts, 0.8),
    ):
        if near := difflib.get_close_matches(written, candidates, n=1, cutoff=cutoff):
            return candidates[near[0]]
    return None


def explain_value(message: str) -> str:
    """Say which key has a wrong value, what was found and what is possible."""
    keys, found = list(dict.fromkeys(KEY.findall(message))), CLASS.search(message)
    if not keys:
        return " ".join(message.split())
    key, detail = ".".join(keys[:2]), message[message.rindex(f'"{keys[-1]}":') :]
    if section := SECTION.search(message):
        return f"{key} is {shown(section[1])}, but must be an object of its options."
    if len(keys) > 1:
        detail = re.split(r"^    - ", detail, flags=re.MULTILINE)[0]  # what follows is about the section around the key
    elif found:
        return f"{key} cannot be {found['path']}: {found['cause']}"
    values = ["".join(groups) for groups in VALUE.findall(detail)]
    kinds = list(dict.fromkeys(map(_kind, POSSIBLE.findall(detail))))
    if key in CLASS_KEYS:
        kinds = [kind for kind in kinds if kind != "null"] or ["the path of a class"]
    if values and kinds:
        return f"{key} is {shown(values[-1])}, but must be {' or '.join(kinds)}."
    return f"{key}: {' '.join(detail.partition(':')[2].split())}"


def shown(value: object) -> str:
    """Return a value as a message shows it."""
    return "null" if value in (None, "None") else repr(value)


def _kind(expected: str) -> str:
    """Return a type as a user writes it."""
    if choices := re.match(r"typing\.Literal\[(.*)\]", expected):
        return " or ".join(choices[1].replace("'", "").split(", "))
    if expected.startswith(("subclass of", "dot import path")):
        return f"the path of a {expected}" if expected.startswith("subclass of") else "the path of a class"
    name = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", expected)
    return KINDS.get(name.partition("[")[0], name)
