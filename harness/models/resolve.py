"""From a model URI to a folder on this machine."""

import shutil
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import is_folder, new_directory, write_json
from harness.models import tiny
from harness.models.cache import (
    MANIFEST,
    LocalModel,
    Report,
    cache_folder,
    checked_folder,
    damaged_file,
    missing_parts,
    outputs_of,
    source_digest,
)
from harness.models.hub import download_from_hub, hub_folder
from harness.models.load import save_model
from harness.models.packages import converted_folder, install_packages, read_conversion
from harness.models.uri import ModelUri


def is_downloaded(uri: ModelUri) -> bool:
    """Whether `resolve` would need no network: everything is there and complete, by name and size."""
    if uri.scheme == "hf":
        folder = hub_folder(uri)
        return folder is not None and not missing_parts(folder)
    if uri.scheme == "path":
        return is_folder(uri.directory) and not missing_parts(uri.directory)
    if uri.generated is not None:
        return True
    return read_conversion(converted_folder(uri)) is not None


def resolve(uri: ModelUri, *, download: bool = True, report: Report = lambda message: None) -> LocalModel:
    """The folder of a model; downloads and converts it first where that is allowed and needed.

    Args:
        uri: from `parse_uri`.
        download: whether the network may be used. What is there already is never downloaded again.
        report: called with one line of progress at a time.

    Raises:
        HarnessError: absent and ``download`` is false; no network; no such package, version, repository or revision;
            a digest that differs; a conversion that fails its check; a full disk.
    """
    if uri.scheme == "path":  # its digests are its identity: they were read when that was made
        return LocalModel(uri, checked_folder(uri), {"uri": uri.text})
    found = _found(uri, download, report)
    if not download or not (name := damaged_file(found.folder)):
        return found
    report(f"damaged: {name} of {found.folder} is not as it was written; made again")
    _remove(uri, found.folder / name)
    found = _found(uri, download, report)
    if name := damaged_file(found.folder):
        raise HarnessError(
            uri.text,
            f"a file {name} that differs from its digest, again",
            "a disk that keeps what is written",
            f"Remove {found.folder}, and check the disk.",
        )
    return found


def _remove(uri: ModelUri, damaged: Path) -> None:
    """Make way for a new copy: of the file where the hub has it, else of the whole model."""
    if uri.scheme == "hf":
        damaged.resolve().unlink(missing_ok=True)
        damaged.unlink(missing_ok=True)
    else:
        shutil.rmtree(damaged.parent, ignore_errors=True)


def _found(uri: ModelUri, download: bool, report: Report) -> LocalModel:
    """The folder of a model that is downloaded or generated, whatever is in its files."""
    if uri.generated is not None:
        return LocalModel(uri, _generated(uri, uri.generated), {"uri": uri.text})
    if not is_downloaded(uri):
        if not download:
            raise HarnessError(
                uri.text, "no complete copy on this machine", "a downloaded model", "Run `harness models --download`."
            )
        if uri.scheme == "hf":
            download_from_hub(uri, report)
        else:
            install_packages(uri, report)
    if uri.scheme == "hf":
        folder = hub_folder(uri)
        assert folder is not None  # download_from_hub raises otherwise
        return LocalModel(uri, folder, {"uri": uri.text, "commit": folder.name})
    folder = converted_folder(uri)
    manifest = read_conversion(folder)
    assert manifest is not None  # install_packages raises otherwise
    return LocalModel(uri, folder, manifest)


def _generated(uri: ModelUri, spec: tiny.TinyModel) -> Path:
    """The folder of a tiny model, generated once."""
    folder = cache_folder() / "models" / f"tiny-{spec.architecture}-{source_digest(uri)[:16]}"
    if missing_parts(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with new_directory(folder) as unfinished:
            save_model(*tiny.make(spec), unfinished)
            write_json(unfinished / MANIFEST, {"outputs": outputs_of(unfinished)})
    return folder
