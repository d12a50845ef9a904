"""Whether the Hugging Face Hub answers, asked once with a short timeout.

The libraries try a dead endpoint six times before they use their caches: 24 seconds for a dataset.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def is_reachable(repo: str, kind: str) -> bool:
    """Return whether the hub answers, even if it has no such repository; warn if it does not.

    A local folder needs no hub: True.

    Args:
        repo: id of a repository, or a local folder.
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
