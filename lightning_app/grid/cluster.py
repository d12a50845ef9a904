"""Where conditions run on several machines: as tasks of a Ray cluster (extra `cluster`)."""

import hashlib
import logging
import os
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any, Self

import fsspec

from lightning_app.errors import UsageError
from lightning_app.grid.condition import Condition
from lightning_app.grid.schedule import Plan
from lightning_app.grid.workers import run_logged, with_mistake
from lightning_app.results.files import METRICS_FILE, make_folder

RETRIES = 3
"""How often a condition is begun again, after its last whole epoch, because its node died."""

SECONDS_TO_ANSWER = 10.0
"""Of a cluster whose address is given."""

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a storage that failed is asked again."""

ACCELERATORS = {"gpu": "GPU", "cuda": "GPU", "tpu": "TPU", "cpu": "CPU"}
"""What Ray calls them."""


class RayCluster:
    """Gives every condition to a Ray cluster, which runs as many at once as it has room for.

    A condition takes `num_cpus` cores and, as its `trainer.accelerator` says, a GPU or a TPU chip. One whose node dies
    is run again by another node. Results are those of a local run, in the same files.

    Args:
        conditions: What will be run; their configurations say on what.
        address: Of the cluster; None starts one on this machine, or takes that of RAY_ADDRESS.
        num_cpus: Cores of a condition.
        storage: URL of a folder for results, where the nodes do not see `--outputs`.

    Raises:
        UsageError: If Ray is not installed, the cluster does not answer or has no such device.
    """

    largest_first = True

    def __init__(
        self, conditions: Sequence[Condition], address: str | None, num_cpus: int, storage: str | None
    ) -> None:
        self._ray = _connect(address)
        self._storage = Storage(storage) if storage else None
        self._running: dict[Any, Condition] = {}
        self._options: dict[str, Any] = {"num_cpus": num_cpus, "max_retries": RETRIES} | self._device(
            accelerator_of(conditions[0])
        )

    def _device(self, accelerator: str) -> dict[str, Any]:
        found = {name: int(self._ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU", "TPU")}
        best = next(name for name in ("GPU", "TPU", "CPU") if found[name] or name == "CPU")
        device = best if accelerator == "auto" else ACCELERATORS.get(accelerator, accelerator)
        if not found.get(device):
            raise UsageError(
                f"trainer.accelerator is {accelerator!r}, found a Ray cluster of {found}. Set --accelerator."
            )
        asked: dict[str, dict[str, Any]] = {"GPU": {"num_gpus": 1}, "TPU": {"resources": {"TPU": 1}}}
        return asked.get(device, {})

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what runs, and leave the cluster."""
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()

    def check(self, check_inputs: Callable[[list[Condition]], Plan], conditions: Sequence[Condition]) -> Plan:
        """Call `check_inputs` on a node, which has the device and the data.

        Raises:
            UsageError: If a condition could not be run.
        """
        task = self._ray.remote(**self._options)(_check)
        plan, mistake = self._ray.get(task.remote(check_inputs, [self._ship(condition) for condition in conditions]))
        if mistake:
            raise UsageError(mistake)
        return replace(plan, costs=dict(zip(conditions, plan.costs.values(), strict=True)))

    def has_room(self) -> bool:
        """Return true: the cluster queues what it has no room for."""
        return True

    def start(self, condition: Condition) -> None:
        """Submit a condition."""
        task = self._ray.remote(**self._options)(run_shipped)
        self._running[task.remote(self._ship(condition))] = condition

    def wait(self) -> tuple[Condition, str | None]:
        """See `Workers.wait`."""
        (ended,), _ = self._ray.wait(list(self._running), num_returns=1)
        condition = self._running.pop(ended)
        try:
            failure = self._ray.get(ended)
        except self._ray.exceptions.RayError as error:
            failure = f"Ray could not run it: {str(error).strip().splitlines()[0]}"
        try:
            if self._storage:
                for name in condition.places:
                    self._storage.fetch(f"{condition.experiment.name}/{name}", condition.experiment / name)
        except UsageError as error:
            failure = failure or str(error)
        return condition, failure

    def _ship(self, condition: Condition) -> "Shipment":
        texts = tuple((path.name, path.read_text(encoding="utf-8")) for path in condition.configs)
        absolute = replace(condition, folder=condition.folder.resolve(), configs=())
        return Shipment(absolute, texts, self._storage.url if self._storage else None)


def _connect(address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "--engine ray needs Ray, which is not installed. Install it: pip install -e ./callbacks -e '.[cluster]'"
        ) from error
    try:
        _knock(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--address is {address!r}, found no Ray cluster there ({error}). Start one with `ray start --head`, or "
            "leave it out to have one on this machine."
        ) from error
    return ray


def _knock(address: str | None) -> None:
    """Raise OSError where nothing answers at HOST:PORT: Ray itself would go on trying for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()


def accelerator_of(condition: Condition) -> str:
    """Return the `trainer.accelerator` that the last of a condition's configurations or overrides sets."""
    settings = condition.settings()
    found = [config.get("trainer", {}).get("accelerator") for config in settings["configs"]]
    found += [word.partition("=")[2] for word in settings["overrides"] if word.startswith("--trainer.accelerator=")]
    return next((name for name in reversed(found) if name), "auto")


@dataclass(frozen=True)
class Shipment:
    """A condition as it travels to another machine: its configurations as text, not as paths of this one."""

    condition: Condition
    texts: tuple[tuple[str, str], ...]
    storage: str | None

    def unpack(self, scratch: Path) -> Condition:
        """Return the condition on this machine: configurations written to `scratch`, its folder where results go."""
        paths = tuple(scratch / f"{index}-{name}" for index, (name, _) in enumerate(self.texts))
        for path, (_, text) in zip(paths, self.texts, strict=True):
            path.write_text(text, encoding="utf-8")
        condition = replace(self.condition, configs=paths)
        if not self.storage:
            return condition
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        here = cache / "influence-study" / hashlib.sha256(self.storage.encode()).hexdigest()[:16]
        return replace(condition, folder=here / condition.folder.relative_to(condition.experiment.parent))


def _check(
    check_inputs: Callable[[list[Condition]], Plan], shipments: Sequence[Shipment]
) -> tuple[Plan | None, str | None]:
    with TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(index) for index in range(len(shipments))]
        for folder in folders:
            folder.mkdir()
        conditions = [shipment.unpack(folder) for shipment, folder in zip(shipments, folders, strict=True)]
        return with_mistake(check_inputs, conditions)


def run_shipped(shipment: Shipment) -> str | None:
    """Run a condition on this node; return why it failed."""
    with TemporaryDirectory() as scratch:
        condition = shipment.unpack(Path(scratch))
        if shipment.storage:
            return _run_with_storage(condition, shipment.storage)
        if condition.experiment.is_dir():
            return run_logged(condition)
    return (
        f"{socket.gethostname()} does not see {condition.experiment}. Put --outputs on a file system that all nodes "
        "share, or give a --storage."
    )


def _run_with_storage(condition: Condition, url: str) -> str | None:
    name, failure = condition.experiment.name, None
    try:
        storage = Storage(url)
        if condition.start:
            storage.fetch(f"{name}/{condition.start}", condition.experiment / condition.start)
        failure = run_logged(condition)
        for place in condition.places:
            storage.store(condition.experiment / place, f"{name}/{place}")
    except UsageError as error:
        return failure or str(error)
    return failure


class Storage:
    """A folder that is reached by a URL, with the same files as a local one.

    Args:
        url: Of any file system that fsspec knows: `s3://bucket/folder`, `gs://...`, `file:///...`.

    Raises:
        UsageError: If fsspec does not know it, or lacks the package for it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"--storage is {url!r}: {error}") from error

    def fetch(self, name: str, target: Path, keep_complete: bool = False) -> None:
        """Copy a file, or all files of a folder but checkpoints, to `target`; nothing if there is none.

        Args:
            name: The file or folder.
            target: What becomes of it. It changes when all files are there, the metrics of a condition last.
            keep_complete: Leave out what belongs to a condition that is complete in `target`.

        Raises:
            UsageError: If a file has a name that leads out of the folder, or the storage does not answer.
        """
        source = f"{self._root}/{name}"
        self._files.invalidate_cache()  # nodes have stored more since
        kept = {path.parent for path in target.rglob(METRICS_FILE)} if keep_complete else set()
        fetched: dict[Path, Path] = {}
        try:
            for path in sorted(self._try("find", source), key=lambda path: path.endswith(METRICS_FILE)):
                parts = PurePosixPath(path.removeprefix(source).lstrip("/")).parts
                if ".." in parts:
                    raise UsageError(f"--storage has a file {path!r}, which leads out of its folder. Rename it there.")
                local = target.joinpath(*parts)
                if "checkpoints" not in parts and kept.isdisjoint(local.parents):
                    make_folder(local.parent)
                    fetched[local] = local.with_name(f".{local.name}.{uuid.uuid4().hex}.tmp")
                    self._try("get_file", path, str(fetched[local]))
            for local in fetched:
                local.with_name(METRICS_FILE).unlink(missing_ok=True)  # those of an earlier run
            for local, temporary in fetched.items():
                temporary.replace(local)
        finally:
            for temporary in fetched.values():
                temporary.unlink(missing_ok=True)

    def store(self, source: Path, name: str) -> None:
        """Copy a file, or a folder's files, the metrics last: where they are, the condition is complete.

        Raises:
            UsageError: If the storage does not answer.
        """
        files = sorted(
            (path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == METRICS_FILE
        )
        stale = f"{self._root}/{name}/{METRICS_FILE}"
        if self._try("exists", stale):
            self._try("rm_file", stale)
        for path in [source] if source.is_file() else files:
            target = f"{self._root}/{name}/{path.relative_to(source).as_posix()}".removesuffix("/.")
            self._try("makedirs", target.rpartition("/")[0], exist_ok=True)
            self._try("put_file", str(path), target)

    def _try(self, action: str, *args: Any, pauses: Sequence[float] = PAUSES, **kwargs: Any) -> Any:
        """Call a method of the file system, again after each of some pauses while it fails."""
        try:
            return getattr(self._files, action)(*args, **kwargs)
        except Exception as error:  # each storage raises its own
            if not pauses:
                raise UsageError(
                    f"--storage {self.url} failed {len(PAUSES) + 1} times to {action} {args[0]!r} "
                    f"({type(error).__name__}: {error}). Run the same command when it answers."
                ) from error
        sleep(pauses[0])
        return self._try(action, *args, pauses=pauses[1:], **kwargs)
