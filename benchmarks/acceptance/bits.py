"""The same bits everywhere: noise against the CPU's golden hashes, and a kernel pack launched by cuda.core against Triton.

A pack is built on the spot for this GPU and launched twice: its cubins, and the PTX that any other GPU would fall back to.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from acceptance.accuracy import all_forms
from acceptance.device import Device, need, open_device
from acceptance.report import Recorder, Skip
from acceptance.rows import PAIRS, RowBuffers

# The contract of distill_rt.core.noise: seeds, shape of one image, stream, sha256 of the float32 little-endian bytes.
GOLDEN: dict[str, tuple[list[int], tuple[int, ...], int, str]] = {
    "latent": ([0, 1], (4, 64, 64), 0, "9e521173e3224bfd88fd4c1577b17fa957b076e9f6a13dc30af30d4d43f5099c"),
    "odd": ([42], (3, 7, 5), 1, "6b8de190ee82d9ed0ff66c2da1653f762cb7346a5459e6240f9a9493eb887df2"),
    "extreme-seeds": (
        [2**64 - 1, 2**63, 2**32], (1, 9, 9), 4, "0c6e95baeee2388dcd140cb0be9dd6c7174d2a8e49677c06f8314d4402e1a81d",
    ),
    "extra-stream": ([123456789], (1000,), 1 << 16, "2d0790152869adfb2abcee9aa2bddd934c61aece3b62aa6ce2dc4ce6497dab8f"),
}  # fmt: skip
SHAPES = ((2, 4, 64, 64), (3, 3, 7, 5))
PACK_PAIRS = PAIRS[:2] + PAIRS[3:]

Launch = Callable[[str, tuple[int, int, int], list[int]], None]


def run(recorder: Recorder, argument: str) -> None:
    device = open_device(recorder)
    recorder.holds("cpu_noise_golden", wrong_hashes(cpu_noise) == [], note="NumPy or native, on this machine's CPU")
    wrong = wrong_hashes(lambda *draw: triton_noise(device, *draw))
    recorder.holds("triton_noise_golden", wrong == [], note=", ".join(wrong))
    with tempfile.TemporaryDirectory() as folder:
        check_packs(recorder, device, Path(folder))


def sha256(values: Any) -> str:
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()


def wrong_hashes(draw: Callable[[list[int], tuple[int, ...], int], Any]) -> list[str]:
    return [name for name, (seeds, shape, i, wanted) in GOLDEN.items() if sha256(draw(seeds, shape, i)) != wanted]


def cpu_noise(seeds: list[int], shape: tuple[int, ...], stream: int) -> Any:
    from distill_rt import kernels

    return kernels.unit_noise(seeds, shape, stream)


def triton_noise(device: Device, seeds: list[int], shape: tuple[int, ...], stream: int) -> Any:
    from distill_rt.kernels.triton import on_tensors

    out, row, seeds_B = noise_tensors(device, seeds, shape, stream)
    on_tensors.philox_normal(out, row, seeds_B)
    return out.cpu().numpy()


def noise_tensors(device: Device, seeds: list[int], shape: tuple[int, ...], stream: int) -> tuple[Any, Any, Any]:
    import numpy as np
    import torch

    from distill_rt.core.table import Row
    from distill_rt.kernels.triton.row_layout import WORD, pack_row

    row = pack_row(Row(net_id=-1, n=1.0, stream=1))
    row.view(np.uint32)[WORD["stream"]] = stream  # rows draw from stream 1 on, the initial noise is stream 0
    seeds_B = torch.from_numpy(np.array(seeds, np.uint64).view(np.int64))
    out = torch.full((len(seeds), *shape), math.nan, device=device.name)
    return out, torch.from_numpy(row).to(device.name), seeds_B.to(device.name)


def check_packs(recorder: Recorder, device: Device, folder: Path) -> None:
    """Build both packs, launch them, compare. A dry run builds a small pack, which needs no GPU, and stops there."""
    from distill_rt.kernels.aot import build_pack
    from distill_rt.kernels.triton.variants import default_variants

    pairs: Any = PACK_PAIRS[2:] if recorder.dry else PACK_PAIRS
    variants = [
        variant
        for variant in default_variants(pairs, ["fp32", "fp16"])
        if not recorder.dry or variant.kernel == "to_uint8"
    ]
    capability = 90 if recorder.dry else device.capability
    started = time.monotonic()
    pack = build_pack(
        folder / "cubins", variants, capabilities=[capability], num_processes=len(os.sched_getaffinity(0))
    )
    recorder.figure("pack_build_seconds", time.monotonic() - started)
    recorder.figure("pack_images", len(pack.images))
    recorder.figure("pack_bytes", sum(len(image) for image in pack.images.values()))
    recorder.figure("pack_triton", pack.body.triton_version)
    packs, wanted = {"cubins": pack}, {"cubins": [f"sm_{capability}"]}
    if capability >= 80:  # what the PTX is for
        packs["ptx"] = build_pack(folder / "ptx", variants, capabilities=[], num_processes=len(os.sched_getaffinity(0)))
        wanted = {"cubins": [f"sm_{capability}", "ptx_80"], "ptx": ["ptx_80"]}
    choices = {name: [choice.target for choice in built.choices(capability)] for name, built in packs.items()}
    recorder.figure("choices", choices)
    recorder.holds("pack_choice", choices == wanted)
    if recorder.dry:
        from acceptance.interpreted import ListedPack

        listed = ListedPack(default_variants(PACK_PAIRS, ["fp32"]))
        wrong = list(different_launches(device, listed, listed.launch, ((1, 2, 4, 4), SHAPES[1])))
        wrong += wrong_hashes(lambda *draw: pack_noise(device, listed, listed.launch, *draw))
        recorder.holds("pack_arguments", wrong == [], note=", ".join(["in the interpreter", *wrong]))
        return
    need("cuda")
    from distill_rt.core.optional import installed

    if not installed("cuda.core"):
        raise Skip("package 'cuda-core' is not installed: the pack was built and not launched")
    golden, equal = [], []
    for name, built in packs.items():
        loaded, launch, seconds = load_pack(built)
        recorder.figure(f"{name}_load_seconds", seconds)
        recorder.figure(f"{name}_choice", {"target": loaded.choice.target, "note": loaded.note})
        golden += [
            f"{name} {w}" for w in wrong_hashes(lambda *draw, b=built, go=launch: pack_noise(device, b, go, *draw))
        ]
        equal += [f"{name} {what}" for what in different_launches(device, built, launch)]
    recorder.figure("different_from_triton", equal)
    recorder.holds("pack_noise_golden", golden == [], note=", ".join(golden))
    recorder.holds("pack_equals_triton", equal == [], note=", ".join(equal)[:500])


def load_pack(pack: Any) -> tuple[Any, Launch, float]:
    """The pack on device 0 through cuda.core, and a launch that waits."""
    import torch
    from cuda.core import Device as CudaDevice

    from distill_rt.kernels.loaded_pack import LoadedPack

    device = CudaDevice(0)
    device.set_current()  # the primary context, which is torch's
    stream = device.create_stream()
    started = time.monotonic()
    loaded = LoadedPack(pack, device)
    seconds = time.monotonic() - started

    def launch(name: str, grid: tuple[int, int, int], args: list[int]) -> None:
        torch.cuda.synchronize()
        loaded.launch(stream, name, grid, args)
        stream.sync()

    return loaded, launch, seconds


def pack_noise(device: Device, pack: Any, launch: Launch, seeds: list[int], shape: tuple[int, ...], stream: int) -> Any:
    out, row, seeds_B = noise_tensors(device, seeds, shape, stream)
    num = math.prod(shape)
    name = pack.find("philox_normal", state="fp32", network="fp32", aligned=num % 16 == 0)
    args = [out.data_ptr(), out.data_ptr(), row.data_ptr(), seeds_B.data_ptr(), num, num, 0, 0, 0]
    launch(name, pack.body.kernels[name].grid(len(seeds), num), args)
    return out.cpu().numpy()


def different_launches(
    device: Device, pack: Any, launch: Launch, shapes: tuple[tuple[int, ...], ...] = SHAPES
) -> Iterable[str]:
    """What differs in any bit between Triton's own launches and the pack's."""
    for pair in PACK_PAIRS:
        for shape in shapes:
            for form_name, form in all_forms().items():
                by_triton = RowBuffers(form, pair, shape, num_sets=1, device=device.name)
                by_pack = RowBuffers(form, pair, shape, num_sets=1, device=device.name)
                by_triton.kernel(0)()
                launch(*row_launch(pack, by_pack, pair, shape))
                if not same_bits(by_triton.results(), by_pack.results()):
                    yield f"table_row {form_name} {'-'.join(pair)} {shape}"
    for shape in shapes:
        for kernel, (got, wanted) in other_launches(device, pack, launch, shape).items():
            if not same_bits([got], [wanted]):
                yield f"{kernel} {shape}"


def row_launch(
    pack: Any, buffers: RowBuffers, pair: tuple[str, str], shape: tuple[int, ...]
) -> tuple[str, tuple[int, int, int], list[int]]:
    """Variant, grid and arguments of `table_row` as a runtime without Triton passes them."""
    from distill_rt.kernels.triton.variants import table_row_features

    form, (F, F_u) = buffers.form, buffers.outputs(0)
    num, B = math.prod(shape[1:]), shape[0]
    # The general form is packed with noise only; a row that draws none says so by its weight.
    features = table_row_features(guided=form.guided, general=form.multistep, noise=form.noise or form.multistep)
    aligned = num % 16 == 0
    name = pack.find(
        "table_row", state=pair[0], network=pair[1], features=dict(features), aligned=aligned
    ) if aligned or form.multistep else general_variant(pack, form, pair)  # fmt: skip
    x, past, x0 = buffers.x[0], buffers.past, buffers.x0
    unused = x.data_ptr()
    args = [
        x.data_ptr(), F.data_ptr(), unused if F_u is None else F_u.data_ptr(),
        unused if past is None else past[0].data_ptr(), unused, unused, unused,
        buffers.out[0].data_ptr(), unused if x0 is None else x0[0].data_ptr(), buffers.scaled[0].data_ptr(),
        buffers.row.data_ptr(), buffers.w.data_ptr(), buffers.factor.data_ptr(), buffers.w.data_ptr(),
        buffers.seeds.data_ptr(),
        num, num, num, num, B * num, form.copies,
    ]  # fmt: skip
    return name, pack.body.kernels[name].grid(B, num), args


def general_variant(pack: Any, form: Any, pair: tuple[str, str]) -> str:
    """Sizes that are no multiple of 16 run the general form, the only one that is packed unaligned."""
    from distill_rt.kernels.triton.variants import table_row_features

    features = table_row_features(guided=form.guided, general=True, noise=True)
    return str(pack.find("table_row", state=pair[0], network=pair[1], features=dict(features), aligned=False))


def other_launches(device: Device, pack: Any, launch: Launch, shape: tuple[int, ...]) -> dict[str, tuple[Any, Any]]:
    """The other kernels: (pack's result, Triton's), float32."""
    import torch

    from distill_rt.core.table import Row
    from distill_rt.kernels.triton import on_tensors
    from distill_rt.kernels.triton.row_layout import pack_row

    generator = torch.Generator(device.name).manual_seed(11)
    x, F, F_u = (torch.empty(shape, device=device.name).normal_(generator=generator) for _ in range(3))
    B, num = shape[0], math.prod(shape[1:])
    w = torch.linspace(1.5, 7.5, B, device=device.name)
    phi = torch.full((B,), 0.7, device=device.name)
    row = torch.from_numpy(pack_row(Row(p=1.2, q=-0.7, threshold_ratio=0.9, threshold_max=9.0))).to(device.name)
    a, b = torch.zeros(2, B, device=device.name)
    c, d = torch.zeros(2, B, device=device.name)
    e, f = torch.zeros((2, B, *shape[2:], shape[1]), dtype=torch.uint8, device=device.name)

    def packed(kernel: str, args: list[int], aligned: bool = False, **features: bool) -> None:
        name = pack.find(kernel, state="fp32", network="fp32", features=features, aligned=aligned)
        launch(name, pack.body.kernels[name].grid(B, num), args)

    on_tensors.guidance_factor(F, F_u, w, phi, b)
    packed("guidance_factor", [*(t.data_ptr() for t in (F, F_u, w, phi, a)), num, num])
    on_tensors.dynamic_threshold(x, F, row, d)
    packed("dynamic_threshold", [*(t.data_ptr() for t in (x, F, F, row, w, w, c)), num, num, num], GUIDED=False)
    on_tensors.to_uint8(x, f)
    packed("to_uint8", [x.data_ptr(), e.data_ptr(), num, num // shape[1], shape[1], num], aligned=num % 16 == 0)
    return {"guidance_factor": (a, b), "dynamic_threshold": (c, d), "to_uint8": (e, f)}


def same_bits(a: list[Any], b: list[Any]) -> bool:
    """Whether all tensors agree in every bit, and none holds NaN, with which outputs start."""
    import torch

    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return all(
        bool((x.view(words[x.element_size()]) == y.view(words[y.element_size()])).all())
        and not bool(torch.isnan(x.float()).any())
        for x, y in zip(a, b, strict=True)
    )
