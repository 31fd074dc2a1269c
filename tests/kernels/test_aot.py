"""Kernel packs: every kernel compiled for every capability without a GPU, read back, chosen from, and damaged."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_rt.core import optional
from distill_rt.core.errors import ArtifactError, DistillError, TargetError, UsageError
from distill_rt.kernels import aot, loaded_pack
from distill_rt.kernels.aot import CAPABILITIES, build_pack, source_digest
from distill_rt.kernels.pack import MANIFEST, KernelPack, Parameter, read_pack
from distill_rt.kernels.triton.ptx import inexact_instructions, parse_entry
from distill_rt.kernels.triton.variants import PARAMETERS, Variant, default_variants, table_row_features

requires_triton = pytest.mark.skipif(not optional.installed("triton"), reason="needs triton (pip install triton)")

MAX_REGISTERS = {"table_row": 64, "philox_normal": 48, "to_uint8": 48, "guidance_factor": 128, "dynamic_threshold": 128}
"""At least half of the threads that a multiprocessor can hold; the two that run one program per image may take all of one."""


def chosen_variants() -> tuple[Variant, ...]:
    """Every kernel, form and dtype once: the rest of the default variants are mixtures of these."""
    all_variants = default_variants([("fp32", "fp16")], ["fp32"])
    wanted = {
        "philox_normal-fp32-fp16",
        "guidance_factor-fp32-fp16-unaligned",
        "dynamic_threshold-fp32-fp16-guided-unaligned",
        "table_row-fp32-fp16",
        "table_row-fp32-fp16-guided-noise",
        "table_row-fp32-fp16-guided-general-noise",
        "to_uint8-fp32",
    }
    found = tuple(variant for variant in all_variants if variant.name in wanted)
    assert len(found) == len(wanted)
    features = table_row_features(guided=True, general=True, noise=True)
    bf16 = Variant(kernel="table_row", state="bf16", network="bf16", features=features, aligned=False)
    return (*found, bf16)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelPack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # a leftover of the interpreter's tests must not reach the compiler
        yield build_pack(tmp_path_factory.mktemp("aot") / "kernels", chosen_variants())


@requires_triton
def test_every_kernel_for_every_capability(pack: KernelPack) -> None:
    assert pack.body.targets == ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "ptx_80")
    assert {kernel.kernel for kernel in pack.body.kernels.values()} == set(PARAMETERS)
    assert pack.body.source_sha256 == source_digest()
    for name, kernel in pack.body.kernels.items():
        assert set(kernel.images) == set(pack.body.targets)
        for target, image in kernel.images.items():
            data = pack.image(name, target)
            if target == "ptx_80":
                assert image.arch == "sm_80"
                assert parse_entry(data.decode()).ptx_version == "8.0"
            else:
                assert data[:4] == b"\x7fELF"
                # Triton's cubins from 9.0 on are for exactly one capability.
                assert image.arch == (target + "a" if int(target[3:]) >= 90 else target)
            assert image.entry == kernel.kernel
            assert image.file.size == len(data) < 64 << 10


@requires_triton
def test_parameters_are_what_the_launcher_passes(pack: KernelPack) -> None:
    for name, kernel in pack.body.kernels.items():
        declared = PARAMETERS[kernel.kernel]
        visible = [p for p in kernel.parameters if p.kind != "hidden"]
        assert [p.name for p in visible] == list(declared)
        assert [p.size_bytes for p in visible] == [4 if kind == "i32" else 8 for kind in declared.values()]
        assert [p.kind for p in kernel.parameters[len(declared) :]] == ["hidden"] * (
            len(kernel.parameters) - len(declared)
        )
        assert 0 <= len(kernel.parameters) - len(declared) <= 2
        # The PTX, parsed here by another route, agrees.
        lines = [line for line in pack.image(name, "ptx_80").decode().splitlines() if line.strip().startswith(".param")]
        assert len(lines) == len(kernel.parameters)


@requires_triton
def test_resources(pack: KernelPack) -> None:
    for name, kernel in pack.body.kernels.items():
        for target, image in kernel.images.items():
            assert image.shared_bytes <= 8 << 10, (name, target)
            if target == "ptx_80":
                assert image.registers is None
                continue
            assert image.registers is not None
            assert 8 <= image.registers <= MAX_REGISTERS[kernel.kernel], (name, target, image.registers)
            assert image.stack_bytes == 0, (name, target, "spills")
            # All threads of a program fit on one multiprocessor.
            assert image.registers * 32 * kernel.num_warps <= 65536


@requires_triton
def test_cubins_agree_with_the_manifest(pack: KernelPack, tmp_path: Path) -> None:
    """The number of parameters and the block size that the driver will see, read from the machine code by cuobjdump."""
    code = "import triton.knobs as k; print(k.nvidia.cuobjdump.path)"
    cuobjdump = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    for name, kernel in pack.body.kernels.items():
        for target in ("sm_75", "sm_90", "sm_120"):
            file = tmp_path / f"{name}.cubin"
            file.write_bytes(pack.image(name, target))
            text = subprocess.run([cuobjdump, "-elf", str(file)], capture_output=True, text=True, check=True).stdout
            assert text.count("EIATTR_KPARAM_INFO") == len(kernel.parameters), (name, target)
            threads = text.split("EIATTR_REQNTID")[1].split("Value:")[1].split()[0]
            assert int(threads, 16) == 32 * kernel.num_warps, (name, target)


@requires_triton
def test_the_arithmetic_is_the_references(pack: KernelPack) -> None:
    """No fused, approximate or unrounded float operation; what each kernel needs is there in its correctly rounded form.

    `build_pack` checks the PTX of every target; here it is the one text in the pack.
    """
    for name, kernel in pack.body.kernels.items():
        ptx = pack.image(name, "ptx_80").decode()
        assert inexact_instructions(ptx) == ()
        assert "fma." not in ptx
        noise = kernel.kernel == "philox_normal" or kernel.features.get("NOISE", False)
        # Of the noise: 2 sums of products per element and coefficient, and the root of the tail.
        assert ("sqrt.rn" in ptx) == (noise or kernel.kernel == "guidance_factor"), name
        assert ("div.rn.f32" in ptx or "div.rn.ftz.f32" in ptx) == (
            kernel.kernel == "guidance_factor" or kernel.features.get("GENERAL", False)
        ), name
        if noise:
            assert ptx.count("mul.rn.f32") >= 4 * 20
            assert "cvt.rn.f32.s32" in ptx or "cvt.rn.f32.u32" in ptx
        if kernel.network == "bf16" and kernel.kernel == "table_row":
            assert "cvt.rn.bf16" in ptx  # rounds; the interpreter truncates
        if kernel.network == "fp16" and kernel.kernel in ("table_row", "philox_normal"):
            assert "cvt.rn.f16" in ptx


@requires_triton
def test_aligned_kernels_move_vectors(pack: KernelPack) -> None:
    fast = pack.image("table_row-fp32-fp16", "ptx_80").decode()
    assert "ld.global.v4.b32" in fast
    assert "st.global.v4.b32" in fast
    assert "ld.global.v2.b32" in fast  # four fp16
    # General as it is, the unaligned one touches elements.
    scattered = pack.image("table_row-bf16-bf16-guided-general-noise-unaligned", "ptx_80").decode()
    assert ".v4." not in scattered


FUSED = """
.version 8.0
.target sm_80
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u32 k_param_1,
	.param .u64 .ptr .global .align 1 k_param_2
)
.reqntid 128
{
	mul.rn.f32 	%r1, %r2, %r3;
	@%p1 fma.rn.f32 	%r1, %r2, %r3, %r4;
	add.f32 	%r1, %r2, %r3;
	div.full.f32 	%r1, %r2, %r3;
	sqrt.approx.f32 	%r1, %r2;
	ex2.approx.ftz.f32 	%r1, %r2;
	mul.rn.ftz.f32 	%r1, %r2, %r3;
	cvt.rn.f16.f32 	%h1, %r3;
	cvt.rz.bf16.f32 	%h1, %r3;
	cvt.f32.f16 	%r1, %h1;
	mad.lo.s32 	%r1, %r2, %r3, %r4;
	setp.lt.f32 	%p1, %r1, %r2;
	fma.rn.bf16x2 	%r1, %r2, %r3, %r4;
}
"""


def test_inexact_instructions_are_found() -> None:
    assert inexact_instructions(FUSED) == (
        "add.f32", "cvt.rz.bf16.f32", "div.full.f32", "ex2.approx.ftz.f32", "fma.rn.bf16x2", "fma.rn.f32",
        "mul.rn.ftz.f32", "sqrt.approx.f32",
    )  # fmt: skip
    entry = parse_entry(FUSED)
    assert (entry.name, entry.arch, entry.ptx_version) == ("k", "sm_80", "8.0")
    assert entry.parameters == ((8, True), (4, False), (8, True))
    with pytest.raises(ValueError, match="one entry"):
        parse_entry(FUSED + FUSED)
    with pytest.raises(ValueError, match="cannot read"):
        parse_entry(FUSED.replace(".param .u32 k_param_1", ".param .align 4 .b8 k_param_1[12]"))


@requires_triton
def test_builds_are_reproducible(pack: KernelPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    variants = [variant for variant in chosen_variants() if variant.name in ("table_row-fp32-fp16", "to_uint8-fp32")]
    again = build_pack(tmp_path / "again", variants, capabilities=(90,))
    for variant in variants:
        for target in ("sm_90", "ptx_80"):
            assert again.image(variant.name, target) == pack.image(variant.name, target)


@requires_triton
def test_the_right_image_for_every_device(pack: KernelPack) -> None:
    first = {capability: pack.choices(capability)[0] for capability in (*CAPABILITIES, 87, 103, 110, 121)}
    for capability in CAPABILITIES:
        assert (first[capability].target, first[capability].note) == (f"sm_{capability}", "")
    assert first[87].target == "sm_86"
    assert "8.6 run on this 8.7 device" in first[87].note
    for capability, shown in ((103, "10.3"), (110, "11.0"), (121, "12.1")):
        assert [choice.target for choice in pack.choices(capability)] == ["ptx_80"]
        assert shown in first[capability].note
        assert "driver compiles its PTX" in first[capability].note
    assert [choice.target for choice in pack.choices(89)] == ["sm_89", "sm_86", "sm_80", "ptx_80"]
    with pytest.raises(TargetError, match=r"nothing for compute capability 7\.0") as caught:
        pack.choices(70)
    assert caught.value.code == "kernel-pack-capability"


@requires_triton
def test_variants_are_found_by_what_they_do(pack: KernelPack) -> None:
    features = dict(table_row_features(guided=True, general=True, noise=True))
    found = pack.find("table_row", state="fp32", network="fp16", features=features)
    assert found == "table_row-fp32-fp16-guided-general-noise"
    assert pack.body.kernels[found].grid(3, 1025) == (3, 3, 1)
    # Only an unaligned one was built: it serves aligned launches, too.
    found = pack.find("dynamic_threshold", state="fp32", network="fp16", features={"GUIDED": True})
    assert pack.body.kernels[found].grid(3, 1025) == (3, 1, 1)
    with pytest.raises(TargetError) as caught:
        pack.find("table_row", state="fp32", network="fp16", features=features, aligned=False)
    assert caught.value.code == "kernel-pack-variant"


@requires_triton
def test_reading_a_part(pack: KernelPack) -> None:
    part = read_pack(pack.directory, targets=["sm_90"])
    assert set(part.images) == {kernel.images["sm_90"].file.path for kernel in part.body.kernels.values()}


@pytest.fixture
def copied(pack: KernelPack, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pack.directory, tmp_path / "copy"))


@requires_triton
def test_damage_is_named(copied: Path) -> None:
    def refused(code: str, text: str) -> None:
        with pytest.raises(ArtifactError, match=text) as caught:
            read_pack(copied)
        assert caught.value.code == code
        assert "\n" not in str(caught.value)

    manifest = copied / MANIFEST
    original = manifest.read_text()
    cubin = next(copied.glob("sm_90-table_row*.cubin"))
    data = cubin.read_bytes()
    cubin.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused("kernel-pack-damaged", cubin.name)
    cubin.write_bytes(data[:100])
    refused("kernel-pack-damaged", "not the file that was written")
    cubin.unlink()
    refused("kernel-pack-damaged", "missing")
    cubin.symlink_to(next(copied.glob("sm_80-table_row*.cubin")))
    refused("kernel-pack-damaged", "is a link")
    cubin.unlink()
    cubin.write_bytes(data)
    read_pack(copied)

    manifest.write_text(original.replace(f'"{cubin.name}"', f'"../{cubin.name}"'))
    refused("kernel-pack-damaged", "plain relative path")
    manifest.write_text(original.replace('"triton_version"', '"tritonversion"'))
    refused("kernel-pack-damaged", "unknown keys")
    manifest.write_text(original[:-20])
    refused("kernel-pack-damaged", "not valid JSON")
    content = json.loads(original)
    content["format_version"] = 2
    manifest.write_text(json.dumps(content))
    refused("kernel-pack-version", "version 1")
    content = json.loads(original)
    del next(iter(content["body"]["kernels"].values()))["images"]["sm_90"]
    manifest.write_text(json.dumps(content))
    refused("kernel-pack-damaged", "has images for")
    manifest.unlink()
    refused("kernel-pack-missing", "cannot be read")


@requires_triton
def test_an_existing_directory_is_kept(pack: KernelPack) -> None:
    with pytest.raises(UsageError, match="exists already"):
        build_pack(pack.directory, chosen_variants()[:1], capabilities=(90,))


@requires_triton
def test_a_kernel_that_cannot_be_compiled(tmp_path: Path) -> None:
    broken = dataclasses.replace(chosen_variants()[0], features=(("NO_SUCH_SWITCH", True),))
    with pytest.raises(TargetError, match="cannot be compiled for sm_90") as caught:
        build_pack(tmp_path / "p", [broken], capabilities=(90,), with_ptx=False)
    assert caught.value.code == "kernel-compile"
    assert not list(tmp_path.iterdir())


def test_without_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "installed", lambda name: False)
    with pytest.raises(TargetError, match="triton"):
        build_pack(tmp_path / "p", default_variants([("fp32", "fp16")]))
    with pytest.raises(UsageError, match="at least one variant"):
        build_pack(tmp_path / "p", [])


def test_marshalling() -> None:
    parameters = (
        Parameter(name="x_ptr", kind="pointer", size_bytes=8),
        Parameter(name="num", kind="integer", size_bytes=4),
        Parameter(name="stride", kind="integer", size_bytes=8),
        Parameter(name="scratch0", kind="hidden", size_bytes=8),
    )
    pointer, num, stride, scratch = loaded_pack.marshal(parameters, [2**63 + 5, 2**31 - 1, -3])
    assert (type(pointer), pointer) == (int, 2**63 + 5)
    assert (type(num), num.value) == (ctypes.c_int32, 2**31 - 1)
    assert (type(stride), stride.value) == (ctypes.c_int64, -3)
    assert (type(scratch), scratch) == (int, 0)
    for args, text in (([1, 2], "takes 3 arguments"), ([1, 2**31, 0], "num must be"), ([-1, 0, 0], "x_ptr must be")):
        with pytest.raises(UsageError, match=text):
            loaded_pack.marshal(parameters, args)
    with pytest.raises(ValueError, match="has no 4 bytes"):
        Parameter(name="x", kind="pointer", size_bytes=4)


class FakeCore:
    """What `LoadedPack` uses of cuda.core; `refuses` says with which error an image is turned down."""

    def __init__(self, pack: KernelPack, refuses: dict[str, str]) -> None:
        self.pack, self.refuses, self.launched = pack, refuses, []  # type: ignore[var-annotated]
        self.ObjectCode = SimpleNamespace(from_cubin=self.load, from_ptx=self.load)
        self.LaunchConfig = SimpleNamespace

    def load(self, image: bytes, name: str) -> Any:
        kernel = self.pack.body.kernels[name]
        (target,) = {t for t, i in kernel.images.items() if hashlib.sha256(image).hexdigest() == i.file.sha256}
        if target in self.refuses:
            raise RuntimeError(self.refuses[target])
        sizes = [SimpleNamespace(size=parameter.size_bytes) for parameter in kernel.parameters]
        return SimpleNamespace(
            get_kernel=lambda entry: SimpleNamespace(entry=entry, target=target, arguments_info=sizes)
        )

    def launch(self, stream: Any, config: Any, kernel: Any, *args: Any) -> None:
        self.launched.append((stream, config, kernel, args))


@requires_triton
def test_loading_takes_the_next_image_and_says_so(pack: KernelPack, monkeypatch: pytest.MonkeyPatch) -> None:
    core = FakeCore(pack, {"sm_90": "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image"})
    monkeypatch.setattr(loaded_pack, "require_driver", lambda: None)
    monkeypatch.setattr(loaded_pack, "require", lambda module, extra: core)
    device = SimpleNamespace(compute_capability=SimpleNamespace(major=9, minor=0))
    name = "to_uint8-fp32"
    loaded = loaded_pack.LoadedPack(pack, device, [name])
    assert loaded.choice.target == "ptx_80"
    assert "driver compiles its PTX" in loaded.note

    loaded.launch("stream", name, (7, 2, 1), [4096, 8192, 48, 16, 3, 48])
    ((stream, config, kernel, args),) = core.launched
    assert (stream, kernel.entry, kernel.target) == ("stream", "to_uint8", "ptx_80")
    assert (config.grid, config.block, config.shmem_size) == ((7, 2, 1), (128, 1, 1), 0)
    assert len(args) == len(pack.body.kernels[name].parameters)

    core.refuses["ptx_80"] = "CUDA_ERROR_UNSUPPORTED_PTX_VERSION: too old"
    with pytest.raises(TargetError, match="takes no image") as caught:
        loaded_pack.LoadedPack(pack, device, [name])
    assert caught.value.code == "kernel-pack-refused"
    core.refuses["sm_90"] = "CUDA_ERROR_OUT_OF_MEMORY: no"
    with pytest.raises(RuntimeError, match="OUT_OF_MEMORY"):  # another image would not help
        loaded_pack.LoadedPack(pack, device, [name])


@requires_triton
def test_loading_without_a_driver(pack: KernelPack) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(DistillError, match="no NVIDIA driver") as caught:
            loaded_pack.LoadedPack(pack, SimpleNamespace())
        assert caught.value.code == "driver-missing"
    else:
        pytest.skip("this machine has a driver")
