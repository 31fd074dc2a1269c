"""Generate images from an engine and write them as PNG, with seed, engine and request in the file's text.

Image k draws its noise from seed + k, so it can be made again alone. Steps, guidance, labels and prompts must be within the
student's contract (distill-rt inspect shows it). An existing PNG is replaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.outcome import Outcome
from distill_rt.cli.parser import integers, positive
from distill_rt.core.errors import UsageError

EXTRA = "cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="engine directory")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="the file to write")
    parser.add_argument("--label", type=integers, metavar="3 or 0,1,2", help="one for all images, or one per image")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="one for all images, or repeated, one per image"
    )
    parser.add_argument("--seed", type=int, help="0 to 2**64 - 1 (drawn and reported)")
    parser.add_argument(
        "--num-images", type=int, metavar="N", help="number of images (one, or one per label or prompt)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="one of the contract's plans (its default)")
    parser.add_argument("--guidance", type=float, metavar="W", help="guidance scale (the contract's default)")
    parser.add_argument("--separate", action="store_true", help="one file per image: PNG_0.png, PNG_1.png, ...")
    parser.add_argument("--columns", type=positive, metavar="N", help="images per row of the sheet (about square)")
    parser.add_argument(
        "--scale", type=positive, metavar="N", help="enlarge by a whole factor (1, or until 64 pixels are reached)"
    )
    parser.add_argument("--no-capture", action="store_true", help="on a GPU: launch kernels one by one, no CUDA graph")


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.core.atomic_file import check_file
    from distill_rt.runtime.images import check_output, check_sheet, save_grid, save_separate, separate_paths
    from distill_rt.runtime.pipeline import Pipeline
    from distill_rt.runtime.request import Request

    if args.separate and args.columns is not None:
        raise UsageError("--columns is for a sheet, and --separate makes none", code="bad-arguments", hint="choose one")
    check_output(args.out)
    request = Request(
        labels=args.label,
        prompts=args.prompt,
        seed=args.seed,
        num_images=args.num_images,
        steps=args.steps,
        guidance=args.guidance,
    )
    with Pipeline.load(args.engine, preload=False, capture=not args.no_capture) as pipeline:
        request = pipeline.resolve(request)
        assert request.num_images is not None
        if args.separate:
            check_sheet(pipeline.spec.image_shape, 1, args.scale)
            for path in separate_paths(args.out, request.num_images):
                check_file(path)
        else:
            check_sheet(pipeline.spec.image_shape, request.num_images, args.scale, args.columns)
        result = pipeline.generate_request(request)
        target = pipeline.manifest.target
        load_ms = pipeline.load_ms
        notes = pipeline.notes
    if args.separate:
        files = save_separate(args.out, result, scale=args.scale)
    else:
        files = [args.out]
        save_grid(args.out, result, scale=args.scale, columns=args.columns)
    data = {
        "files": [str(file) for file in files],
        "num_images": len(result.images),
        "seeds": list(result.seeds),
        "labels": None if result.labels is None else list(result.labels),
        "prompts": None if result.prompts is None else list(result.prompts),
        "cut_prompts": None if result.cut_prompts is None else list(result.cut_prompts),
        "steps": result.steps,
        "guidance": result.guidance,
        "target": target,
        "engine": result.engine,
        "notes": list(notes),
        "timings_ms": {"open": load_ms, **result.timings_ms},
    }
    return Outcome(data=data, text=_text(data))


def _text(data: dict[str, object]) -> str:
    files, num = data["files"], data["num_images"]
    assert isinstance(files, list)
    assert isinstance(data["seeds"], list)
    assert isinstance(data["notes"], list)
    where = files[0] if len(files) == 1 else f"{files[0]} ... {files[-1]}"
    images = "1 image" if num == 1 else f"{num} images"
    w = "" if data["guidance"] is None else f", guidance {data['guidance']:g}"
    lines = [f"{where}: {images}, seed {data['seeds'][0]}, {data['steps']} steps{w}, {data['target']}"]
    cut = data["cut_prompts"]
    assert cut is None or isinstance(cut, list)
    lines += [
        f"the student reads no further: this end of a prompt was cut: {end!r}"
        for end in dict.fromkeys(cut or ())
        if end
    ]
    lines += [f"note: {note}" for note in data["notes"]]
    return "\n".join(lines)
