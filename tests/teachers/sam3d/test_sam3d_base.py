"""3DSAM-adapter and the published weights that it adapts."""

from pathlib import Path

import pytest
import torch
from helpers.base_models import published_sam
from helpers.prompts import points_to_prompts
from helpers.teachers import SAM3D_TRAINED, tiny_teacher
from safetensors.torch import load_file, save_file

from samkd.errors import BadInputError
from samkd.training.checkpoint import load_weights, save_weights


def test_weights_survive_a_safetensors_round_trip(tmp_path: Path):
    model, twin = tiny_teacher("sam3d").eval(), tiny_teacher("sam3d").eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    twin.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    image, asked = torch.randn(1, 1, 8, 16, 24), points_to_prompts([[[[1, 2, 3]], [[4, 5, 6]]]], [[[1], [1]]])
    with torch.no_grad():
        assert torch.equal(model(image, asked), twin(image, asked))


@pytest.mark.parametrize("side", [64, 128])
def test_load_pretrained_accounts_for_every_key(tmp_path: Path, side: int):
    theirs = torch.load(published_sam(tmp_path / "sam.pth", side=side), weights_only=True)
    model = tiny_teacher("sam3d")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = model.load_pretrained(tmp_path / "sam.pth")
    assert report.variant == "vit_tiny_p8"
    kinds = [report.loaded, report.reinitialised, report.added]
    assert sorted(key for kind in kinds for key in kind) == sorted(model.state_dict())
    assert sorted([*report.loaded, *report.dropped]) == sorted(theirs)
    tables = [f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in (1, 3) for axis in "hw"]
    assert sorted(report.interpolated) == ([] if side == 64 else sorted(["image_encoder.pos_embed", *tables]))
    after = model.state_dict()
    for key in set(report.loaded) - set(report.interpolated):
        assert torch.equal(after[key], theirs[key]), key
    for key in (*report.reinitialised, *report.added):
        if not key.endswith(".rel_pos_d"):
            assert torch.equal(after[key], before[key]), key
    for index in range(4):
        h, w, d = (after[f"image_encoder.blocks.{index}.attn.rel_pos_{axis}"] for axis in "hwd")
        torch.testing.assert_close(d, (h + w) / 2)
    assert model.get_parameter("image_encoder.blocks.0.attn.rel_pos_d").requires_grad


def test_load_pretrained_refuses_another_backbone_and_leaves_the_model_alone(tmp_path: Path):
    published_sam(tmp_path / "sam.pth", backbone="vit_tiny")
    model = tiny_teacher("sam3d")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BadInputError, match=r"sam\.pth.*vit_tiny\b"):
        model.load_pretrained(tmp_path / "sam.pth")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_base_and_the_tuned_part_make_the_model_again(tmp_path: Path):
    base = published_sam(tmp_path / "sam.pth", side=128)
    model, twin = tiny_teacher("sam3d").eval(), tiny_teacher("sam3d").eval()
    for network in (model, twin):
        network.load_pretrained(base)
        network.freeze_pretrained()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    save_weights(model, tmp_path / "tuned.safetensors")
    assert all(SAM3D_TRAINED.match(name) for name in load_file(tmp_path / "tuned.safetensors"))
    load_weights(twin, tmp_path / "tuned.safetensors")
    image = torch.randn(1, 1, 8, 16, 24)
    with torch.no_grad():
        assert torch.equal(model(image), twin(image))
