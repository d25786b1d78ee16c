"""Resolves what a user gives as a model to a folder: a path, a bundled model's name, or a Hugging Face Hub id."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.gguf.header import MAGIC
from steerling_jax.io.gguf.parts import part_names
from steerling_jax.io.weights.published_layout import COMPANIONS, INDEX, SINGLE

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILE = re.compile(rf"({_HUB_ID.pattern})/([\w./-]+\.gguf)")  # a GGUF file in a Hub repository
_HUB_PATH = re.compile(rf"({_HUB_ID.pattern})((?:/[\w.-]+)*)")  # a repository, or a file or folder in it
# Of an export of `steerling attach`, beside those of a model.
BOTTLENECK_FILES = ("bottleneck.json", "cfg.json", "sae.safetensors", "features.json")


def is_gguf(path: Path) -> bool:
    """Whether a path is meant as a GGUF file, by its name or its first bytes."""
    if not path.is_file() or path.suffix.lower() == ".gguf":
        return path.is_file()
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def bundled_models() -> dict[str, Path]:
    """Folders of the models that are part of the package, by name."""
    root = Path(str(files("steerling_jax"))) / "bundled"
    return (
        {path.name: path for path in sorted(root.iterdir()) if (path / "config.json").is_file()}
        if root.is_dir()
        else {}
    )


def resolve(path_or_name: str | Path | None = None, *, gguf: bool = False) -> Path:
    """The folder of a model, or with `gguf` possibly a GGUF file.

    A folder that exists takes precedence over a bundled model of that name, and that over a download from the Hub,
    which uses huggingface_hub's cache, token and progress display. None gives the first bundled model. Raises
    `UserError` if nothing is found. Of a GGUF model in several files all are downloaded, and the first is returned.
    """
    bundled = bundled_models()
    if path_or_name is None:
        if not bundled:
            raise UserError(
                "This installation has no bundled model; give a folder or a Hub id such as guidelabs/steerling-8b."
            )
        return next(iter(bundled.values()))
    name = str(path_or_name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        if gguf and is_gguf(folder):
            return folder
        known = "a GGUF file or the folder of a model" if gguf else "the folder of the model"
        raise UserError(f"{name} is a file; give {known}.")
    if name in bundled:
        return bundled[name]
    if _HUB_ID.fullmatch(name):
        return download(name)
    if gguf and (match := _HUB_FILE.fullmatch(name)):
        repo, path = match[1], match[2]
        file = path.rpartition("/")[2]
        first, *_ = [download(repo, path.removesuffix(file) + part) for part in part_names(file)]
        return first
    similar = difflib.get_close_matches(name, bundled, n=1)
    hint = f"did you mean {similar[0]!r}?" if similar else f"bundled models are: {', '.join(bundled) or 'none'}."
    raise UserError(f"There is no folder and no bundled model {name!r}; {hint}")


def hub_path(name: str) -> tuple[str, str] | None:
    """The repository and the path in it, "" for all of it, of a Hub id `owner/name` or `owner/name/path`; else None."""
    match = _HUB_PATH.fullmatch(name)
    return (match[1], match[2].strip("/")) if match else None


def download(repo: str, file: str | None = None) -> Path:
    """The local snapshot of a Hub model, or one file of it, downloaded unless cached. Raises `UserError` on failure."""
    from huggingface_hub import hf_hub_download, snapshot_download

    patterns = ["config.json", SINGLE, INDEX, "model*.safetensors", *COMPANIONS, *BOTTLENECK_FILES]
    with _hub_errors(repo, file):
        return Path(hf_hub_download(repo, file) if file else snapshot_download(repo, allow_patterns=patterns))


def list_files(repo: str) -> list[str]:
    """The files of a Hub repository; without a connection, those of it that are in the cache.

    Raises `UserError` on failure.
    """
    from huggingface_hub import list_repo_files, snapshot_download

    with _hub_errors(repo):
        try:
            return sorted(list_repo_files(repo))
        except Exception as error:
            if not _unreachable(error):
                raise
            folder = Path(snapshot_download(repo, local_files_only=True))
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextmanager
def _hub_errors(repo: str, file: str | None = None) -> Iterator[None]:
    """Raises what huggingface_hub raises as `UserError`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        reason = "is gated: accept its terms on huggingface.co and log in with `hf auth login`"
        raise UserError(f"The Hub model {repo} {reason}.") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        reason = "neither a folder nor a model on the Hugging Face Hub; if it is private, log in with `hf auth login`"
        raise UserError(f"{repo} is {reason}.") from error
    except Exception as error:  # the network libraries under huggingface_hub raise exceptions of their own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"No space is left to download {repo}; free some, or set HF_HOME to another disk."
            ) from error
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise UserError(
                f"The Hub model {repo} has no file {file}; see its list of files on huggingface.co."
            ) from error
        if _unreachable(error):
            raise UserError(
                f"There is no folder {repo}, it is not in the Hub's cache, and the Hub cannot be reached; "
                "check the name, or connect and try again."
            ) from error
        raise UserError(f"Could not download {repo} from the Hub ({error_summary(error)}); try again.") from error


def _unreachable(error: BaseException) -> bool:
    from huggingface_hub import errors

    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return isinstance(error, offline) or type(error).__name__ in ("ConnectError", "ConnectTimeout", "ReadTimeout")
