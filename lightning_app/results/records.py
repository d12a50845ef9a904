"""What the JSON files of a run say: every field is checked as it is read, and told by name where it cannot be."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_app.errors import UsageError
from lightning_app.results.files import FIT_FILE, read_json
from lightning_app.results.settings import settings_digest


class Kind(NamedTuple):
    """What a value must be, in words and as a predicate."""

    words: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of ordinary size; True and False are none."""
    return type(value) in (int, float) and abs(value) < 1e300  # NaN is not


def is_loss(value: Any) -> bool:
    """Whether a value is a loss: a number from 0, or what becomes of it where a model diverged."""
    return (is_number(value) and value >= 0) or (type(value) is float and not value < 0)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number from 0 that fits into 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def is_text(value: Any) -> bool:
    """Whether a value is a text that can be shown on one line."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 1000


def is_unicode(value: Any) -> bool:
    """Whether a value is a text that a file can hold."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def table_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A predicate: whether a value is an object whose values all hold."""
    return lambda value: isinstance(value, dict) and all(map(is_text, value)) and all(map(holds, value.values()))


def or_null(kind: Kind) -> Kind:
    """The same kind, or null."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


TEXT = Kind("a text of printable characters", is_text)
COUNT = Kind("a whole number from 0", is_whole)
NUMBER = Kind("a finite number", is_number)
SECONDS = Kind("seconds by phase", table_of(lambda value: is_number(value) and value >= 0))
SHARE = Kind("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
LOSS = Kind("a number from 0, or NaN of a model that diverged", is_loss)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
DIGEST = Kind("a SHA-256 in hexadecimal", lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None)

FIT = {
    "trainable_parameters": COUNT,
    "optimisation_steps": COUNT,
    "epochs": COUNT,
    "seconds": SECONDS,
    "fit_peak_memory_bytes": COUNT,
}
MASKING = {
    "masked_parameters": COUNT,
    "candidate_parameters": COUNT,
    "calibration_samples": or_null(COUNT),
    "predicted_change": or_null(NUMBER),
    "measured_change": or_null(NUMBER),
    "gradient_shared": FLAG,
    "mask_digest": DIGEST,
}
"""What a fit that made a mask records besides."""

METRICS = {
    "dataset": TEXT,
    "arm": TEXT,
    "seed": COUNT,
    "backbone": TEXT,
    "accuracy": SHARE,
    "macro_f1": SHARE,
    "nll": LOSS,
    "ece": LOSS,
    "eval_split": TEXT,
    "early_stop_on": Kind("dev or eval", lambda value: value in ("dev", "eval")),
    "split_sizes": Kind("rows by split", table_of(is_whole)),
    "seconds": SECONDS,
    "peak_memory_bytes": COUNT,
    "device": TEXT,
    "precision": TEXT,
    "versions": Kind("versions by package", table_of(is_text)),
    "dataset_fingerprint": DIGEST,
    "backbone_fingerprint": DIGEST,
}
CONDITION = {"digest": DIGEST, "settings": Kind("an object", lambda value: isinstance(value, dict))}
TYPED = {"typed": Kind("texts", table_of(is_unicode))}
SETTINGS = {
    "configs": Kind("objects", lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value)),
    "overrides": Kind("texts", lambda value: isinstance(value, list) and all(map(is_unicode, value))),
}
SWEEP = {
    "baseline": Kind("an object", lambda value: isinstance(value, dict)),
    "points": Kind("a list", lambda value: isinstance(value, list)),
}
UNMASKED = {"accuracy": SHARE, "nll": LOSS}
POINT = {
    "score": TEXT,
    "tail": Kind("lowest or highest", lambda value: value in ("lowest", "highest")),
    "fraction": Kind("a number between 0 and 1", lambda value: is_number(value) and 0 < value < 1),
    "num_masked": COUNT,
    "predicted_change": NUMBER,
    "measured_change": NUMBER,
    **UNMASKED,
}


def read_metrics(file: Path) -> dict[str, Any]:
    """What a complete condition measured: the known fields of its `metrics.json`.

    Raises:
        FileNotFoundError: If there is none.
        UsageError: If a field is missing or of another kind, or the file speaks of another run than its folder, or
            otherwise than the run's `fit.json`.
    """
    found = read_json(file)
    record = _checked(file, found, METRICS, FIT | MASKING)
    place = {"arm": file.parents[1].name, "seed": file.parent.name}
    if place != {"arm": record["arm"], "seed": f"seed{record['seed']}"}:
        raise UsageError(
            f"{file} speaks of {record['arm']}/seed{record['seed']}. Delete its folder and run the condition again."
        )
    fit = read_fit(file.with_name(FIT_FILE))
    said = record | {"seconds": {phase: record["seconds"].get(phase) for phase in fit.get("seconds", {})}}
    for name in fit:
        if said.get(name) != fit[name]:
            raise UsageError(
                f"{file} says {said.get(name)!r} of {name}, {FIT_FILE} beside it {fit[name]!r}. Delete their folder "
                "and run the condition again."
            )
    return record


def read_fit(file: Path) -> dict[str, Any]:
    """What a fit left for its evaluation; nothing where there was none.

    Raises:
        UsageError: If a field is missing or of another kind.
    """
    if not file.exists():
        return {}
    found = read_json(file)
    return _checked(file, found, FIT | (MASKING if MASKING.keys() & found.keys() else {}))


def read_condition(file: Path) -> dict[str, Any]:
    """The settings that a condition was made under, their digest and the `dataset` and `arm` that the user typed.

    Raises:
        UsageError: If a field is of another kind, or the digest is not that of the settings.
    """
    found = _checked(file, read_json(file), CONDITION, TYPED)
    settings = _checked(file, found["settings"], SETTINGS)
    if found["digest"] != settings_digest(settings):
        raise UsageError(f"{file} holds settings that do not give its digest. Delete its folder and run it again.")
    return found | {"settings": settings}


def read_sweep(file: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The scores without a mask, and one record a mask.

    Raises:
        UsageError: If a field is missing or of another kind.
    """
    found = _checked(file, read_json(file), SWEEP)
    points = [_checked(file, point if isinstance(point, dict) else {}, POINT) for point in found["points"]]
    return _checked(file, found["baseline"], UNMASKED), points


def _checked(
    file: Path, found: Mapping[str, Any], needed: Mapping[str, Kind], known: Mapping[str, Kind] | None = None
) -> dict[str, Any]:
    """The fields that are needed, and those that are known and there; others are left out."""
    kinds = {name: kind for name, kind in {**(known or {}), **needed}.items() if name in needed or name in found}
    for name, kind in kinds.items():
        if name not in found:
            raise UsageError(f"{file} has no {name}. Delete its folder and run the condition again.")
        if not kind.holds(found[name]):
            raise UsageError(
                f"{file} says {_short(found[name])} of {name}, which must be {kind.words}. Delete its folder and run "
                "the condition again."
            )
    return {name: found[name] for name in kinds}


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
