"""Settings of a condition: what can change its result, whichever files and options it comes from."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

KEYS_WITHOUT_EFFECT = re.compile(
    r"outputs|experiment|arm\.color|data\.(cache_dir|num_workers)"
    r"|trainer\.(logger|default_root_dir|enable_progress_bar|enable_model_summary|log_every_n_steps)(\..*)?"
)
"""Keys that change no result: folders, what is printed and logged, and colors."""

PRINTING_CALLBACKS = ("ProgressBar", "ModelSummary")
"""Endings of the classes of callbacks that change no result."""

PLAIN_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
"""Numbers as jsonargparse reads them: YAML alone takes `5e-5` for text. Leading zeros are those of a text."""


def merge_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the configurations and the options of a condition; the later value of a key overrides the earlier one.

    Args:
        settings: `configs`, the contents of YAML files in their order, and `overrides`, options as `--key=value`.

    Returns:
        Values by dotted key, as `--set` takes it (`data.max_length`), without the keys that change no result.
    """
    merged: dict[str, Any] = {}
    for key, value in [
        *(pair for config in settings["configs"] for pair in _flat("", config)),
        *map(_parse_option, settings["overrides"]),
    ]:
        if key.endswith("+"):  # jsonargparse's notation for appending to a list
            key, added = key[:-1], value if isinstance(value, list) else [value]
            value = _normal([*(merged.get(key) or []), *added])
        if not KEYS_WITHOUT_EFFECT.fullmatch(key):
            merged[key] = value
    return merged


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the merged settings."""
    return hashlib.sha256(json.dumps(merge_settings(settings), sort_keys=True).encode()).hexdigest()


def describe_difference(made: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Name the keys whose values differ between the settings of two conditions, with both values."""
    before, now = (
        {key: json.dumps(value) for key, value in merge_settings(settings).items()} for settings in (made, asked)
    )
    keys = sorted(key for key in before | now if before.get(key) != now.get(key))
    return "; ".join(f"{key} was {before.get(key, 'not set')}, now it is {now.get(key, 'not set')}" for key in keys)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys without `init_args`, which the command line leaves out too. An option of data stays whole."""
    if isinstance(value, dict) and (value or not prefix) and not prefix.startswith("data."):
        for key, item in value.items():
            yield from _flat(prefix if key == "init_args" else f"{prefix}.{key}".removeprefix("."), item)
    else:
        yield prefix, _normal(value)


def _parse_option(word: str) -> tuple[str, Any]:
    """Return the key and the value of `--key=value`."""
    key, _, text = word.removeprefix("--").partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    is_plain = value is None or isinstance(value, bool | list | dict)
    return key.replace(".init_args.", "."), _normal(value if is_plain else text)


def _normal(value: Any) -> Any:
    """Return one form for equal values: numbers written in another way, keys in another order, printing callbacks."""
    if isinstance(value, list):
        return [_normal(item) for item in value if not _only_prints(item)]
    if isinstance(value, dict):
        return {str(key): _normal(item) for key, item in value.items()}
    if value is None or isinstance(value, bool):
        return value
    text = str(value)
    if not PLAIN_NUMBER.fullmatch(text):
        return text
    number = float(text)
    return int(number) if number.is_integer() else number


def _only_prints(item: Any) -> bool:
    return isinstance(item, dict) and str(item.get("class_path")).endswith(PRINTING_CALLBACKS)
