"""The JSON files of a run: every field is checked when it is read, and an error names the wrong one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from lightning_app.errors import UsageError
from lightning_app.results.files import FIT_FILE, RERUN, read_json
from lightning_app.results.identity import Role
from lightning_app.results.settings import settings_digest


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("Input should have printable characters only")
    return text


def _of_ordinary_size(value: float) -> float:
    if not abs(value) < 1e300:  # NaN is not either; what is larger would overflow in sums
        raise ValueError("Input should be a finite number of ordinary size")
    return value


Text = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_printable)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, AfterValidator(_of_ordinary_size)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Trains = Literal["none", "head", "adapter", "all"]


class FitFields(TypedDict, total=False):
    """What every fit leaves for its evaluation."""

    trainable_parameters: Count
    optimisation_steps: Count
    epochs: Count
    seconds: dict[Text, Annotated[Number, Field(ge=0)]]
    fit_peak_memory_bytes: Count


class MaskingFields(TypedDict, total=False):
    """What a fit also leaves if it made a mask."""

    masked_parameters: Count
    candidate_parameters: Count
    calibration_samples: Count | None
    predicted_change: Number | None
    measured_change: Number | None
    gradient_shared: bool
    mask_digest: Digest


class MaskedFit(FitFields, MaskingFields, total=False):
    """All that a fit may leave."""


class EvaluationRecord(TypedDict):
    """What an evaluation leaves, besides the metrics and what its fit left."""

    dataset: Text
    arm: Text
    seed: Count
    role: Role
    starts_from: Text | None
    control: Text | None
    color: Text | None
    trains: Trains
    backbone: Text
    eval_split: Text
    early_stop_on: Literal["dev", "eval"]
    split_sizes: dict[Text, Count]
    seconds: dict[Text, Annotated[Number, Field(ge=0)]]
    peak_memory_bytes: Count
    device: Text
    precision: Text
    versions: dict[Text, Text]
    dataset_fingerprint: Digest
    backbone_fingerprint: Digest
    chance: NotRequired[dict[Text, Number]]
    backbone_quantization: NotRequired[Text | None]


class TypedNames(TypedDict):
    """What the user typed for a dataset and an arm on the command line: the name of a shipped file, or a path."""

    dataset: str
    arm: str


class ConditionSettings(TypedDict):
    """What decides a condition's result."""

    configs: list[dict[str, Any]]
    overrides: list[str]


class ConditionRecord(TypedDict):
    """What an experiment or a fit records of a condition: its settings and their digest."""

    digest: Digest
    settings: ConditionSettings
    typed: NotRequired[TypedNames]


class SweepPointRecord(TypedDict):
    """A mask of a sweep, without its metrics on dev."""

    score: Text
    tail: Literal["lowest", "highest"]
    fraction: Annotated[float, Field(gt=0, lt=1)]
    num_masked: Count
    predicted_change: Number
    measured_change: Number


class SweepRecord(TypedDict):
    """A sweep: the metrics on dev without a mask, and one object per mask."""

    baseline: dict[str, Any]
    points: list[dict[str, Any]]


def read_metrics(file: Path) -> dict[str, Any]:
    """Return the known fields of the `metrics.json` of a complete condition; metrics may be missing.

    Raises:
        FileNotFoundError: If there is none.
        UsageError: If a field is missing or wrong, or the file contradicts the names of its folders or the run's
            `fit.json`.
    """
    content = read_json(file)
    record = _checked(file, content, EvaluationRecord) | _checked(file, content, MaskedFit) | _metrics(file, content)
    name = f"{record['arm']}/seed{record['seed']}"
    if name != f"{file.parents[1].name}/{file.parent.name}":
        raise UsageError(f"{file} is the record of {name}, not of its folder. {RERUN}")
    fit = read_fit(file.with_name(FIT_FILE))
    recorded = record | {"seconds": {phase: record["seconds"].get(phase) for phase in fit.get("seconds", {})}}
    for name in fit:
        if recorded.get(name) != fit[name]:
            raise UsageError(
                f"{file} has {recorded.get(name)!r} as {name}, but {FIT_FILE} in the same folder has {fit[name]!r}. "
                f"{RERUN}"
            )
    return record


def read_fit(file: Path) -> dict[str, Any]:
    """Return what a fit left for its evaluation; empty if there was no fit.

    Raises:
        UsageError: If a field is missing or wrong.
    """
    if not file.exists():
        return {}
    record = _checked(file, read_json(file), MaskedFit)
    masking = MaskingFields.__annotations__.keys()
    needed = FitFields.__annotations__.keys() | (masking if masking & record.keys() else set())
    if missing := sorted(needed - record.keys()):
        raise UsageError(f"{file} has no {missing[0]}. {RERUN}")
    return record


def read_condition(file: Path) -> dict[str, Any]:
    """Return the settings of a condition, their digest, and what the user typed if an experiment made it.

    Raises:
        UsageError: If a field is wrong, or the digest is not that of the settings.
    """
    record = _checked(file, read_json(file), ConditionRecord)
    if record["digest"] != settings_digest(record["settings"]):
        raise UsageError(f"{file} has a digest that is not that of its settings. {RERUN}")
    return record


def read_sweep(file: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the metrics without a mask, and one record per mask.

    Raises:
        UsageError: If a field is missing or wrong.
    """
    record = _checked(file, read_json(file), SweepRecord)
    points = [_checked(file, point, SweepPointRecord) | _metrics(file, point) for point in record["points"]]
    return _metrics(file, record["baseline"]), points


def _checked(file: Path, content: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Return the fields of a kind of record, without others."""
    try:
        return TypeAdapter(kind).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name, value = ".".join(map(str, first["loc"])), ascii(first["input"])
        if first["type"] == "missing":
            raise UsageError(f"{file} has no {name}. {RERUN}") from error
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{file} has {value[:80]} as {ascii(name)[1:-1]}. {reason}. {RERUN}") from error


def _metrics(file: Path, content: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the registry that a record has."""
    from lightning_app.results.metrics import METRICS  # brings numpy, which starting a run need not wait for

    values = _checked(file, {name: content[name] for name in METRICS if name in content}, dict[str, float])
    for name, value in values.items():
        if not METRICS[name].admits(value):
            low, high = METRICS[name].low, METRICS[name].high
            raise UsageError(f"{file} has {value} as {name}, which is from {low} to {high}. {RERUN}")
    return values
