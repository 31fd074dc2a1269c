"""Text and latent students as directories, and their modules against the classes that they wrap."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import KL_DECODER, TINY_DECODER, UNET, make_tokenizer, text_modules, text_spec, write_text_student

from distill_rt.core.errors import ArtifactError
from distill_rt.core.spec import Condition, NetworkSpec, StudentSpec
from distill_rt.models import build_decoder, build_network, build_text_encoder, load_student, save_student


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def spec(tokenizer: Any) -> StudentSpec:
    return text_spec(tokenizer)


@pytest.fixture
def student(tokenizer: Any, spec: StudentSpec, tmp_path: Path) -> Path:
    return write_text_student(tmp_path / "student", spec, tokenizer)


def test_what_was_saved_is_loaded(student: Path, spec: StudentSpec) -> None:
    loaded = load_student(student)
    assert loaded.spec == spec
    assert list(loaded.components()) == list(spec.components())
    saved = text_modules(spec)
    for name, module in loaded.components().items():
        assert not module.training
        want = saved[name].state_dict()
        assert set(module.state_dict()) == set(want)
        assert all(torch.equal(value, want[key]) for key, value in module.state_dict().items())
    assert loaded.tokenizer == student / "tokenizer.json"


def test_a_decoder_keeps_no_encoder() -> None:
    for kind, config in (("autoencoder_tiny", TINY_DECODER), ("autoencoder_kl", KL_DECODER)):
        names = build_decoder(NetworkSpec(kind=kind, config=config)).state_dict()
        assert not [name for name in names if "encoder." in name or name.startswith("backbone.quant_conv")]


@pytest.mark.parametrize(
    "changes", [{}, {"shift_factor": None}, {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 1.5]}]
)
def test_kl_decoder_undoes_the_latent_scaling(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = KL_DECODER | changes
    decoder = build_decoder(NetworkSpec(kind="autoencoder_kl", config=config)).eval()
    x = torch.randn(2, 4, 8, 8)
    if "latents_mean" in config:  # StableDiffusionXLPipeline
        mean, std = (torch.tensor(config[f"latents_{name}"]).view(1, 4, 1, 1) for name in ("mean", "std"))
        z = x * std / config["scaling_factor"] + mean
    else:  # StableDiffusion3Pipeline
        z = x / config["scaling_factor"] + (config["shift_factor"] or 0.0)
    with torch.inference_mode():
        torch.testing.assert_close(decoder(x), decoder.backbone.decode(z).sample)


def test_tiny_decoder_honours_its_scaling() -> None:
    torch.manual_seed(0)
    decoder = build_decoder(NetworkSpec(kind="autoencoder_tiny", config=TINY_DECODER | {"scaling_factor": 2.0})).eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(decoder(x), decoder.backbone.decode(x / 2.0).sample)


def test_embedded_guidance_is_that_of_latent_consistency_models(tokenizer: Any) -> None:
    from diffusers import LatentConsistencyModelPipeline

    spec = text_spec(tokenizer, guidance="embedded")
    network = text_modules(spec)["network0"].eval()
    x, text, w = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 16), torch.tensor([2.0, 7.5])
    embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w - 1, embedding_dim=8)
    time = torch.tensor([999.0, 499.0])
    with torch.inference_mode():
        want = network.backbone(x, time, text, timestep_cond=embedding).sample
        torch.testing.assert_close(network(x, time, text, w), want)
        assert not torch.equal(want, network(x, time, text, w + 1))


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        ({"addition_embed_type": "text"}, "addition_embed_type"),
        ({"guidance": True}, "time_cond_proj_dim"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
        ({"num_labels": 3}, "num_labels"),
        ({"second_time": True}, "second_time"),
        ({"down_block_types": ["Unknown"]}, "unet2d_condition"),
    ],
)
def test_networks_that_no_contract_feeds(change: dict[str, Any], mentions: str) -> None:
    with pytest.raises(ArtifactError, match=mentions) as caught:
        build_network(NetworkSpec(kind="unet2d_condition", config=UNET | change))
    assert caught.value.code == "network-config"


def test_configurations_that_transformers_refuses() -> None:
    with pytest.raises(ArtifactError, match="text encoder 'clip_text' is refused"):
        build_text_encoder(NetworkSpec(kind="clip_text", config={"hidden_size": "wide"}))
    with pytest.raises(ArtifactError, match="decoder kind 'vq' is unknown"):
        build_decoder(NetworkSpec(kind="vq"))


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"width": 8}, "reads embeddings of 16 elements, the contract's have 8"),
        ({"vocab_size": 600}, "it knows 523 tokens, the contract 600"),
    ],
)
def test_a_contract_that_its_modules_do_not_fit(
    changes: dict[str, Any], mentions: str, tokenizer: Any, spec: StudentSpec, tmp_path: Path
) -> None:
    path = write_text_student(
        tmp_path / "student",
        dataclasses.replace(spec, condition=dataclasses.replace(spec.condition, **changes)),
        tokenizer,
    )
    with pytest.raises(ArtifactError, match=mentions) as caught:
        load_student(path)
    assert caught.value.code == "network-inputs"


@pytest.mark.parametrize("name", ["text_encoder", "decoder"])
def test_weights_that_do_not_fit(name: str, tokenizer: Any, spec: StudentSpec, tmp_path: Path) -> None:
    modules = text_modules(spec)
    files = tmp_path / "files"
    tokenizer.save_pretrained(files)
    modules[name] = torch.nn.Linear(2, 2)
    save_student(
        tmp_path / "student",
        spec,
        [modules["network0"]],
        text_encoder=modules["text_encoder"],
        decoder=modules["decoder"],
        tokenizer=files,
    )
    with pytest.raises(ArtifactError, match=f"{name}.safetensors does not fit the network") as caught:
        load_student(tmp_path / "student")
    assert caught.value.code == "weights-mismatch"


@pytest.mark.parametrize("files", [None, "empty", "nothing.json"])
def test_a_student_without_its_tokenizer_is_not_written(files: str | None, spec: StudentSpec, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    modules = text_modules(spec)
    with pytest.raises(ArtifactError) as caught:
        save_student(
            tmp_path / "student",
            spec,
            [modules["network0"]],
            text_encoder=modules["text_encoder"],
            decoder=modules["decoder"],
            tokenizer=None if files is None else tmp_path / files,
        )
    assert caught.value.code == "tokenizer-missing"
    assert not (tmp_path / "student").exists()


def test_a_tokenizer_that_was_deleted(student: Path) -> None:
    (student / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        load_student(student)


def test_parts_and_contract_must_agree(spec: StudentSpec, tmp_path: Path) -> None:
    modules = text_modules(spec)
    with pytest.raises(ValueError, match="has a decoder"):
        save_student(tmp_path / "student", spec, [modules["network0"]], text_encoder=modules["text_encoder"])
    labelled = dataclasses.replace(
        spec, condition=Condition(kind="label", num_classes=2, null_label=2), text_encoder=None, decoder=None
    )
    with pytest.raises(ValueError, match="has no tokenizer"):
        save_student(tmp_path / "student", labelled, [modules["network0"]], tokenizer=tmp_path)
