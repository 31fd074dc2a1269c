"""Every module imports, and every ``--help`` runs, where no optional package is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill_rt.cli.main import COMMANDS
from distill_rt.core.optional import installed

ROOT = Path(__file__).parent.parent
OPTIONAL = [
    "torch", "diffusers", "transformers", "accelerate", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "openvino", "triton",
    "tensorrt", "tensorrt_rtx", "cuda", "sklearn", "scipy", "matplotlib", "rich", "psutil", "safetensors", "fastapi",
    "uvicorn", "ray", "datasets", "tensorboard",
]  # fmt: skip
NEEDS = {
    # Layers that are a package's own, imported only where it is installed.
    "distill_rt.models": "torch",
    "distill_rt.training": "torch",
    "distill_rt.export.onnx_": "torch",
    "distill_rt.backends.inductor.graph": "torch",
    "distill_rt.backends.inductor.package": "torch",
    "distill_rt.backends.inductor.programs": "torch",
    "distill_rt.backends.inductor.device_programs": "torch",
    "distill_rt.kernels.triton": "triton",
}

HIDE = f"""
import sys
class Hide:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {OPTIONAL!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""
"""Makes the optional packages as absent as if they had never been installed."""


def module_names() -> list[str]:
    names = []
    for folder in ("distill_rt", "kernels", "training"):
        prefix = folder if folder == "distill_rt" else f"distill_rt.{folder}"
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            names.append(".".join([prefix, *parts]).removesuffix(".__init__"))
    return sorted(names)


def needs(module: str) -> str | None:
    return next((package for prefix, package in NEEDS.items() if module.startswith(prefix)), None)


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_modules_without_extras() -> None:
    names = [name for name in module_names() if needs(name) is None]
    assert "distill_rt.runtime.pipeline" in names
    loaded = json.loads(
        python(f"{HIDE}\nimport importlib, json\nfor n in {names!r}: importlib.import_module(n)\n"
               "print(json.dumps([m.partition('.')[0] for m in sys.modules]))")
    )  # fmt: skip
    assert not set(loaded) & set(OPTIONAL)


def test_modules_with_extras() -> None:
    names = [name for name in module_names() if installed(needs(name) or "numpy")]
    python(f"import importlib\nfor n in {names!r}: importlib.import_module(n)")


def test_every_help_without_extras() -> None:
    program = f"""{HIDE}
import contextlib, io
from distill_rt.cli.main import main
for words in [["--help"], ["--version"], *([name, "--help"] for name in {list(COMMANDS)!r})]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(words)
    assert code == 0, (words, code, out.getvalue())
    if words[-1] == "--help":
        assert "usage: distill-rt" in out.getvalue() and "--json" in out.getvalue(), words
"""
    python(program)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["train", "digits-teacher", "--out", "x"], "train"),
        (["recipes"], "train"),
        (["distill", "progressive", "--teacher", "x", "--out", "y"], "train"),
        (["evaluate", "x", "--teacher", "y"], "train"),
        (["export", "x", "--out", "y"], "export"),
    ],
)
def test_a_missing_package_is_one_line_with_the_extra(words: list[str], extra: str, tmp_path: Path) -> None:
    program = f"{HIDE}\nfrom distill_rt.cli.main import main\nsys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"distill-rt[{extra}]" in done.stderr
    assert not list(tmp_path.iterdir())


def test_doctor_without_extras() -> None:
    report = json.loads(python(f"{HIDE}\nfrom distill_rt.cli.main import main\nmain(['doctor', '--json'])"))
    targets = report["targets"]
    assert set(targets) >= {"openvino:cpu", "onnxruntime:cpu"}
    assert not any(target["runs"] or target["builds"] for target in targets.values())
    assert "not installed" in targets["openvino:cpu"]["reason"]


def test_importing_the_package_imports_nothing_else() -> None:
    loaded = json.loads(
        python("import sys; before = set(sys.modules)\nimport distill_rt, json\n"
               "print(json.dumps(sorted(m for m in set(sys.modules) - before if not m.startswith('_'))))")
    )  # fmt: skip
    assert not {name.partition(".")[0] for name in loaded} & {"numpy", "PIL", "argparse", *OPTIONAL}
    assert [name for name in loaded if name.startswith("distill_rt")] == ["distill_rt"]


def test_public_names() -> None:
    import distill_rt as drt

    assert len(drt.__all__) <= 8
    assert drt.__version__[0].isdigit()
    assert drt.load.__module__.startswith("distill_rt.runtime")
    assert issubclass(drt.DistillError, Exception)
    assert callable(drt.compile)
    assert callable(drt.export)
    assert set(drt.__all__) <= set(dir(drt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        drt.nothing  # noqa: B018
