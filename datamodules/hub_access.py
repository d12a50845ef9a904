"""Whether the Hugging Face Hub answers, asked once with a short timeout.

The libraries try a dead endpoint six times before they use their caches: 24 seconds for a dataset.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

TIMEOUT = 10.0
"""Seconds to wait for the hub."""

OFFLINE_ADVICE = (
    "Check the name and the connection. After one run online HF_HUB_OFFLINE=1 works from the local copy; "
    "the docstrings dataset with the embedded backbone needs no hub."
)


def endpoint() -> str:
    """Return the address of the hub, which HF_ENDPOINT sets."""
    return constants.ENDPOINT


def loading_advice(*caches: str | Path) -> str:
    """Return what to do if something could not be loaded: whether a cache folder cannot be written is tried."""
    for folder in map(Path, (constants.HF_HUB_CACHE, *caches)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as err:
            return f"The cache folder {folder} cannot be written ({err}). Set HF_HOME to a folder that can be."
    return OFFLINE_ADVICE


def root_cause(err: BaseException) -> str:
    """Return the type and the first line of an exception, or of the one that `datasets` hides behind its own."""
    while type(err).__name__ == "DatasetGenerationError" and (cause := err.__cause__ or err.__context__):
        err = cause
    return f"{type(err).__name__}: {str(err).partition(chr(10))[0].rstrip('.')}"


def is_reachable(repo: str, kind: str) -> bool:
    """Return whether the hub answers, even if it has no such repository; warn if it does not.

    A local folder needs no hub: True.

    Args:
        repo: Id of a repository, or a local folder.
        kind: `"dataset"` or `"model"`.
    """
    if Path(repo).exists():
        return True
    try:
        HfApi().repo_info(repo, repo_type=kind, timeout=TIMEOUT)
    except (HfHubHTTPError, ValueError):
        return True
    except OfflineModeIsEnabled:
        return False
    except Exception as err:  # the HTTP library, and so the exception, depends on the client's version
        if isinstance(err, OSError) and err.filename:  # a file of the cache, not the hub; loading ends on it as well
            return True
        rank_zero_warn(f"{endpoint()} does not answer ({err}). A local copy of {repo} is used if there is one.")
        return False
    return True


@contextmanager
def offline_datasets() -> Iterator[None]:
    """Make `datasets` use its cache at once, as HF_HUB_OFFLINE=1 does."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
