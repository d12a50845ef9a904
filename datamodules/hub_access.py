"""Whether the Hugging Face Hub answers, asked once and briefly.

The libraries try a dead endpoint six times before they turn to their caches: 24 seconds for a dataset.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

TIMEOUT = 10.0
"""Seconds that the hub may take to answer."""

OFFLINE_ADVICE = (
    "Check the name and the connection. After one run online HF_HUB_OFFLINE=1 works from the local copy; "
    "the docstrings dataset with the embedded backbone needs no hub."
)


def endpoint() -> str:
    """Returns the address of the hub, as HF_ENDPOINT sets it."""
    return constants.ENDPOINT


def is_reachable(repo: str, kind: str) -> bool:
    """Returns whether the hub answers a question about ``repo``, be it that there is none; warns if it does not.

    A folder needs no hub, so the answer is yes.

    Args:
        repo: id of a repository, or a folder.
        kind: ``"dataset"`` or ``"model"``.
    """
    if Path(repo).exists():
        return True
    try:
        HfApi().repo_info(repo, repo_type=kind, timeout=TIMEOUT)
    except (HfHubHTTPError, ValueError):
        return True
    except OfflineModeIsEnabled:
        return False
    except Exception as err:  # each version of the client raises the errors of another HTTP library
        rank_zero_warn(f"{endpoint()} does not answer ({err}): looking for a local copy of {repo}.")
        return False
    return True


@contextmanager
def offline_datasets() -> Iterator[None]:
    """Lets ``datasets`` look at its cache at once, as HF_HUB_OFFLINE=1 would have."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
