"""Imports point down, training and runtime never meet, and each heavy package has one home (design section 2)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    **{
        f"distill_rt/{path.relative_to(ROOT / 'distill_rt').as_posix()}": path
        for path in (ROOT / "distill_rt").rglob("*.py")
    },
    **{
        f"distill_rt/{folder}/{path.relative_to(ROOT / folder).as_posix()}": path
        for folder in ("kernels", "training")
        for path in (ROOT / folder).rglob("*.py")
    },
}

MAY_IMPORT = {
    "core": set(),
    "kernels": {"core"},
    "models": {"core"},
    "backends": {"core", "kernels"},
    "training": {"core", "kernels", "models"},
    "export": {"core", "kernels", "models", "backends"},
    "runtime": {"core", "kernels", "backends"},
    "bench": {"core", "backends", "runtime"},
    "cli": {"core", "kernels", "models", "backends", "training", "export", "runtime", "bench", "distill_rt"},
    # The public API: names of other layers, imported inside of its __getattr__ only.
    "distill_rt": {"core", "models", "export", "runtime"},
}
"""Part of the project -> parts that it may import, at the top of a file or inside of a function."""

TORCH_PARTS = ("distill_rt/models/", "distill_rt/training/")
INDUCTOR = "distill_rt/backends/inductor/"
INDUCTOR_TORCH = tuple(f"{INDUCTOR}{name}" for name in ("graph/", "package.py", "programs.py", "device_programs.py"))
"""What is imported once an inductor target is chosen; the rest of the folder answers without torch."""
FILE_LOCKS = ("distill_rt/backends/cache.py", "distill_rt/export/quantize/environment.py")
HOMES = {
    # package -> (where it may be imported at all, where also at the top of a file)
    "torch": (
        (*TORCH_PARTS, "distill_rt/export/", "distill_rt/cli/demo", INDUCTOR),
        (*TORCH_PARTS, "distill_rt/export/onnx_", *INDUCTOR_TORCH),
    ),
    "diffusers": (("distill_rt/models/",), ()),
    "transformers": (("distill_rt/models/",), ()),
    "onnx": (("distill_rt/export/", f"{INDUCTOR}graph/"), ()),
    "onnxscript": (("distill_rt/export/",), ()),
    "onnx_ir": (("distill_rt/export/",), ()),
    # The export is checked, and constants are folded, by ONNX Runtime before there is a target.
    "onnxruntime": (
        (
            "distill_rt/backends/onnxruntime.py",
            "distill_rt/export/onnx_graph.py",
            "distill_rt/export/trajectory_bundle.py",
            "distill_rt/export/passes/fold.py",
            "distill_rt/export/quantize/",
        ),
        (),
    ),
    "openvino": (("distill_rt/backends/openvino.py",), ()),
    "nncf": (("distill_rt/export/quantize/",), ()),
    "tensorrt": ((), ()),
    "triton": (("distill_rt/kernels/triton/",), ("distill_rt/kernels/triton/",)),
    "cuda": (("distill_rt/kernels/", "distill_rt/backends/cuda/"), ()),
    "fastapi": ((), ()),
    "ray": ((), ()),
    "tokenizers": (("distill_rt/core/tokenizer.py",), ()),
    "safetensors": ((*TORCH_PARTS, "distill_rt/export/golden.py"), TORCH_PARTS),
    "sklearn": (("distill_rt/training/",), ()),
    "scipy": (("distill_rt/training/",), ()),
    "matplotlib": (("distill_rt/bench/plot.py", "distill_rt/cli/demo"), ()),
    "rich": (("distill_rt/cli/progress.py",), ()),
    "PIL": (
        ("distill_rt/runtime/images.py", "distill_rt/training/", "distill_rt/cli/demo"),
        ("distill_rt/runtime/images.py", "distill_rt/training/"),
    ),
    "peft": (("distill_rt/training/lora.py",), ()),
    "tensorboard": (("distill_rt/training/journal.py",), ()),
    "datasets": (("distill_rt/training/data/huggingface.py",), ()),
    "filelock": (FILE_LOCKS, FILE_LOCKS),
    "platformdirs": (("distill_rt/backends/cache.py",), ()),
}


def part_of(module: str) -> str:
    """'distill_rt.core.table' -> 'core'; the package itself is 'distill_rt'."""
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in MAY_IMPORT else "distill_rt"


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(module, whether at the top of the file, line) of every import; also `require("x")`, our import of optional packages.

    Imports for type checkers alone do not count.
    """
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, top, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module, top, node.lineno
            if node.module == "distill_rt":  # from distill_rt import kernels
                yield from ((f"distill_rt.{alias.name}", top, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("require", "importlib.import_module"):
            yield from ((str(name.value), top, node.lineno) for name in node.args[:1] if isinstance(name, ast.Constant))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_point_down(name: str) -> None:
    part = part_of(name.removesuffix(".py").replace("/", "."))
    for module, _, line in imports(SOURCES[name]):
        if module.partition(".")[0] in ("kernels", "training"):
            pytest.fail(f"{name}:{line} imports {module}: say distill_rt.{module}")
        if module.partition(".")[0] != "distill_rt" or module == "distill_rt":
            continue
        other = part_of(module)
        if other != part and other not in MAY_IMPORT[part]:
            pytest.fail(f"{name}:{line} is part of {part} and imports {module}")


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_heavy_packages_stay_at_home(name: str) -> None:
    for module, top, line in imports(SOURCES[name]):
        package = module.partition(".")[0]
        if package not in HOMES:
            continue
        anywhere, at_top = HOMES[package]
        if not name.startswith(anywhere):
            pytest.fail(f"{name}:{line} imports {package}, which belongs into {', '.join(anywhere) or 'no file yet'}")
        if top and not name.startswith(at_top):
            pytest.fail(f"{name}:{line} imports {package} at the top: import it inside of the function that needs it")


def test_every_part_has_its_rule() -> None:
    parts = {name.split("/")[1] for name in SOURCES if name.count("/") > 1}
    assert parts <= set(MAY_IMPORT), "a new folder needs a line in MAY_IMPORT"
    assert "runtime" not in MAY_IMPORT["training"]
    assert "training" not in MAY_IMPORT["runtime"]
    assert not MAY_IMPORT["core"]
    # The rule is a partial order: nobody reaches itself.
    for start in MAY_IMPORT:
        reached, front = set(), set(MAY_IMPORT[start])
        while front:
            reached |= front
            front = {lower for part in front for lower in MAY_IMPORT[part]} - reached
        assert start not in reached or start == "distill_rt", start


def test_the_walk_sees_what_it_should(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "import torch.nn\n"
        "from distill_rt import kernels\n"
        "if TYPE_CHECKING:\n    import onnx\n"
        "def f():\n    from distill_rt.core import x\n    require('openvino', extra='a')\n"
    )
    assert sorted(imports(file)) == [
        ("distill_rt", True, 3),
        ("distill_rt.core", False, 7),
        ("distill_rt.kernels", True, 3),
        ("openvino", False, 8),
        ("torch.nn", True, 2),
        ("typing", True, 1),
    ]
