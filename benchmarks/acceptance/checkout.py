"""`distill_rt` straight from this checkout, uninstalled: a folder of links that looks like the installed package.

In the source tree kernels/ and training/ lie beside distill_rt/; the package holds them. The native module is linked if a build
of it is newer than its sources; otherwise the NumPy reference, which has the same bits, does its work.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSIDE = ("kernels", "training")


def link_package(folder: Path, root: Path = ROOT) -> Path:
    """Fill `folder` with ``distill_rt/`` and ``acceptance/``; it then belongs on PYTHONPATH."""
    package = folder / "distill_rt"
    (package / "kernels").mkdir(parents=True)
    for entry in (root / "distill_rt").iterdir():
        if entry.name not in INSIDE:
            (package / entry.name).symlink_to(entry)
    (package / "training").symlink_to(root / "training")
    for entry in (root / "kernels").iterdir():
        (package / "kernels" / entry.name).symlink_to(entry)
    native = native_module(root)
    if native is not None:
        (package / "kernels" / native.name).symlink_to(native)
    (folder / "acceptance").symlink_to(root / "benchmarks" / "acceptance")
    return folder


def native_module(root: Path = ROOT) -> Path | None:
    """A build of the native kernels for this Python that is not older than its sources, or None."""
    newest = max(path.stat().st_mtime for path in (root / "kernels/native").iterdir())
    names = {f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES}
    found = [path for path in root.glob("build/*/_native*") if path.name in names and path.stat().st_mtime >= newest]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def source_digest(root: Path = ROOT) -> str:
    """sha256 over every Python source that a section runs: figures of two sources never share one report."""
    digest = hashlib.sha256()
    for part in ("distill_rt", "kernels", "training", "benchmarks/acceptance"):
        for path in sorted((root / part).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def commit(root: Path = ROOT) -> str | None:
    """The checkout's commit, with "+" if tracked files differ from it; None without git."""
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        status = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")
