"""Files of a Hub repository, whole or not at all.

The client of the Hub checks how long a file is, not what is in it. This module checks the content,
too, and turns the many errors of the way into sentences.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""What `from_pretrained` takes for the Hub, under the same names as everywhere."""


Result = TypeVar("Result")


class DamagedFileError(OSError):
    """A file is not what the Hub says it is."""


def fetch(repository: str, patterns: Sequence[str], **hub_options: Any) -> Path:
    """The cached folder of a Hub repository, with the files that the patterns name.

    Args:
        repository: Its id, "owner/name".
        patterns: Such as "*.json".
        hub_options: Any of `HUB_OPTIONS`.

    Raises:
        ValueError: If `repository` is no id of the Hub.
        OSError: If the files cannot be had, or arrive damaged, several times.
    """

    def attempt() -> Path:
        folder = snapshot_download(repository, allow_patterns=list(patterns), **hub_options)
        drop_damaged(Path(folder))
        return Path(folder)

    with sentences(repository, "fetched"):
        return patiently(attempt)


def patiently(attempt: Callable[[], Result]) -> Result:
    """What a function returns, tried again after one and after two seconds where that may help.

    It may where the connection broke, a file came damaged, or the Hub failed (5xx).
    """
    for seconds in (1, 2):
        try:
            return attempt()
        except Exception as error:
            if not _may_pass(error):
                raise
            time.sleep(seconds)
    return attempt()


def _may_pass(error: BaseException | None) -> bool:
    if isinstance(error, LocalEntryNotFoundError):  # not in the cache, nor to be had because of
        return _may_pass(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, HTTPError | DamagedFileError)


def drop_damaged(folder: Path) -> None:
    """Takes files out of the cache that are not what the Hub says they are.

    Args:
        folder: A snapshot in the cache.

    Raises:
        DamagedFileError: If there were any; the message names one.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and not is_intact(path)]
    for file in files:
        # The link, what it leads to, and what lies at the end: Xet puts one more link in between.
        for path in (file.resolve(), file.parent / file.readlink(), file):
            path.unlink(missing_ok=True)
    if files:
        name = files[0].relative_to(folder).as_posix()
        raise DamagedFileError(f"{name} arrived damaged: its checksum is not the one of the Hub")


def is_intact(file: Path) -> bool:
    """Whether a file in the cache is what the Hub calls it.

    A file of a snapshot is a link to a blob, whose name is the Hub's checksum: SHA-256 of a large
    file, git's SHA-1 of a small one. Where there are no links (on Windows), there is nothing to
    compare with.
    """
    name = file.readlink().name if file.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return sha256(file) == name
    return not re.fullmatch(r"[0-9a-f]{40}", name) or git_hash(file.read_bytes()) == name


def sha256(file: Path) -> str:
    """The name that the Hub gives to a large file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def git_hash(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def sentences(repository: str, done: str) -> Iterator[None]:
    """Turns what goes wrong between here and the Hub into an OSError of one sentence.

    Args:
        repository: What it is about.
        done: What could not be done to it, such as "fetched".

    Raises:
        ValueError: If `repository` is no id of the Hub.
        OSError: For everything else.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(
            f"{repository!r} is neither a folder here nor a Hub id (owner/name)"
        ) from error
    except OfflineModeIsEnabled as error:
        raise OSError(f"{repository} could not be {done}: HF_HUB_OFFLINE is set") from error
    except LocalEntryNotFoundError as error:
        reason = "the Hub cannot be reached and the cache does not have it"
        if isinstance(error.__cause__, HfHubHTTPError):
            reason = f"the cache does not have it, and {_first_line(error.__cause__)}"
        raise OSError(f"{repository} could not be {done}: {reason}") from error
    except RevisionNotFoundError as error:
        reason = "it has no such revision"
        raise OSError(f"{repository} could not be {done}: {reason}") from error
    except RepositoryNotFoundError as error:
        reason = "the Hub has no such repository, or hides it from this token"
        raise OSError(f"{repository} could not be {done}: {reason}") from error
    except HfHubHTTPError as error:
        reason = {
            401: "the Hub does not know this token",
            412: "someone else changed it at the same time; nothing of this arrived, try again",
        }.get(error.response.status_code, _first_line(error))
        raise OSError(f"{repository} could not be {done}: {reason}") from error
    except Exception as error:  # the Hub's other errors, those of its HTTP client, a full disk
        reason = _first_line(error)
        if error.__cause__ is not None:
            reason += f" {_first_line(error.__cause__)}"
        raise OSError(f"{repository} could not be {done}: {reason}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
