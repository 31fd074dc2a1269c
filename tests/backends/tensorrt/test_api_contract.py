"""Every TensorRT name that our sources touch exists in every release that we serve, or is used behind a probe."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorrt_surface import SURFACES, exists, fake_module, problems, touches

from distill_rt.backends.tensorrt.capability import RTX_CAPABILITIES
from distill_rt.backends.tensorrt.library import PROBES, Library

FOLDER = Path(__file__).parents[3] / "distill_rt" / "backends" / "tensorrt"
FILES = sorted(FOLDER.glob("*.py"))
RTX = "tensorrt_rtx 1.7.1.116"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_name_exists_or_is_probed(path: Path) -> None:
    assert problems(path.read_text()) == []


def test_the_check_sees_our_sources() -> None:
    seen = {name for path in FILES for touch in touches(path.read_text()) for name in touch.names}
    assert {
        "Builder.build_serialized_network",
        "INetworkDefinition.mark_weights_refittable",
        "IBuilderConfig.set_compute_capability",
        "OnnxParser.parse_from_file",
        "ParserError.desc",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.num_io_tensors",
        "Refitter.refit_cuda_engine",
        "EngineInspector.get_engine_information",
        "BuilderFlag.TF32",
        "LayerType.ATTENTION_INPUT",
        "ILogger.ERROR",
    } <= seen
    assert len(seen) > 50


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(builder: Any):\n    builder.build_engine(1)", "no release has Builder.build_engine"),
        ("def f(config: Any):\n    config.set_compute_capability(1, 0)", "no probe is asked"),
        ("def f(trt: Any):\n    return trt.BuilderFlag.FP16", "no probe is asked"),
        ("def f(trt: Any):\n    return trt.CudaEngine", "no release has CudaEngine"),
        ("def f(plan: Any):\n    return plan.engine.device_memory_size", "no probe is asked"),
        ("def f(thing: Any):\n    thing.set_flag(1)", "thing: Any has no agreed name"),
        ("def f(builder: Any):\n    net = builder.create_network(0)", "must be called network"),
        ("def f(library):\n    library.has('user-allocation')\n    library.trt.ComputeCapability", "no probe is asked"),
    ],
)
def test_the_check_finds_what_is_wrong(source: str, says: str) -> None:
    assert any(says in problem for problem in problems(source))


def test_a_probe_makes_a_name_of_some_releases_usable() -> None:
    guarded = (
        "def f(library: Library, config: Any):\n"
        "    if library.has('compute-capabilities'):\n"
        "        config.num_compute_capabilities = 1\n"
    )
    assert problems(guarded) == []


@pytest.mark.parametrize("release", SURFACES)
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_answers_for_all_of_its_names(release: str, probe: str) -> None:
    there = [exists(release, name) for name in PROBES[probe]]
    assert all(there) or not any(there)
    library = Library(trt=fake_module(release), flavour="tensorrt")
    assert library.has(probe) == all(there)


def test_what_the_probes_say_of_the_releases() -> None:
    def having(probe: str) -> set[str]:
        return {release for release in SURFACES if exists(release, PROBES[probe][0])}

    assert having("compute-capabilities") == having("user-allocation") == having("engine-validity") == {RTX}
    assert having("attention-layers") == set(SURFACES) - {"tensorrt 10.9.0.34"}


def test_the_devices_of_rtx_targets_are_those_of_the_library() -> None:
    members = set(SURFACES[RTX]["enums"]["ComputeCapability"])
    assert {f"SM{number}" for number in RTX_CAPABILITIES} == members - {"NONE", "CURRENT"}
