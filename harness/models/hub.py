"""Models of the Hugging Face hub."""

import contextlib
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import disk_errors
from harness.models.cache import Report, first_line, missing_parts
from harness.models.uri import ModelUri

# --- The Hugging Face hub ---------------------------------------------------------------------------------------------

_HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "spiece.model"]


def hub_folder(uri: ModelUri) -> Path | None:
    """The snapshot in the hub's cache, complete or not; asks no network."""
    from huggingface_hub import constants

    if not (Path(constants.HF_HUB_CACHE) / f"models--{uri.repository.replace('/', '--')}").is_dir():
        return None  # the hub's client takes long to import: a plan of models that are not here does without

    from huggingface_hub import snapshot_download

    with contextlib.suppress(OSError, ValueError):  # what the hub's "not in the cache" errors derive from
        return Path(
            snapshot_download(
                uri.repository, revision=uri.revision, allow_patterns=_HUB_PATTERNS, local_files_only=True
            )
        )
    return None


def download_from_hub(uri: ModelUri, report: Report) -> None:
    from huggingface_hub import constants, errors, snapshot_download

    report(f"downloading {uri.repository} at {uri.revision} from the Hugging Face hub")
    try:
        with disk_errors(Path(constants.HF_HUB_CACHE)):
            folder = snapshot_download(uri.repository, revision=uri.revision, allow_patterns=_HUB_PATTERNS)
    except HarnessError:
        raise
    except errors.GatedRepoError as error:
        raise HarnessError(
            uri.text,
            "a gated repository",
            "an account that has accepted its terms",
            f"Accept them on the model's page ({uri.repository}), then log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HarnessError(uri.text, f"no revision {uri.revision!r}", "a branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise HarnessError(
            uri.text,
            f"no repository {uri.repository!r} (or a private one)",
            "a public repository, or a login that may read it",
            "Check the spelling; for a private one log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except Exception as error:  # the hub client raises many kinds where it can't connect
        raise HarnessError(
            uri.text,
            f"no way to the Hugging Face hub ({first_line(error)})",
            "a reachable hub, or the model in its cache",
            "Connect (and unset HF_HUB_OFFLINE), or copy the model here and use path:folder.",
        ) from error
    if missing := missing_parts(Path(folder)):
        raise HarnessError(
            uri.text,
            missing,
            "a repository with config.json, safetensors and tokenizer files",
            "Where only pickled weights exist, choose a revision with safetensors (often @refs/pr/<number>).",
        )
