import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from torch import Tensor, nn
from torch.nn.functional import interpolate

from samkd.errors import BadInputError, IntegrityError
from samkd.sam.checkpoints import NOTHING, canonical_state, load_published, match_published, read_state, recognise
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import BACKBONES, Backbone, DecoderSize
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.vit import ImageEncoder

SMALL = Backbone(
    "small", 16, 3, 2, (1,), window=3, out_chans=32, decoder=DecoderSize(heads=4, mlp_dim=24, iou_hidden=16)
)


def sam(backbone: Backbone, side: int, *, masks: int, stages: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "image_encoder": ImageEncoder(backbone, image_size=(side, side)),
            "prompt_encoder": build_prompt_encoder(backbone, image_size=(side, side)),
            "mask_decoder": MaskDecoder(backbone.decoder, channels=backbone.out_chans, masks=masks, stages=stages),
        }
    )


def published(side: int = 128) -> dict[str, Tensor]:
    """A file like SAM's own: two up-sampling stages, four masks, random values everywhere."""
    torch.manual_seed(0)
    model = sam(SMALL, side, masks=4, stages=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return dict(model.state_dict())


@pytest.fixture
def model() -> nn.ModuleDict:
    torch.manual_seed(1)
    return sam(SMALL, 64, masks=6, stages=4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_small_checkpoint_is_loaded_and_accounted_for(tmp_path: Path, model: nn.ModuleDict, suffix: str):
    state = published()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    report = load_published(model, path)
    after = model.state_dict()
    assert set(report.loaded) | set(report.reinitialised) == set(after)
    assert set(report.loaded) | set(report.dropped) == set(state)
    assert report.added == ()
    replaced = r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head|output_upscaling\.[4679])\."
    assert set(report.reinitialised) == {key for key in after if re.match(replaced, key)}
    assert set(report.interpolated) == {
        "image_encoder.pos_embed",
        "image_encoder.blocks.1.attn.rel_pos_h",
        "image_encoder.blocks.1.attn.rel_pos_w",
    }
    for key in set(report.loaded) - set(report.interpolated):
        assert torch.equal(after[key], state[key]), key
    table = state["image_encoder.blocks.1.attn.rel_pos_h"]
    torch.testing.assert_close(
        after["image_encoder.blocks.1.attn.rel_pos_h"], interpolate(table.T[None], size=7, mode="linear")[0].T
    )
    positions = after["image_encoder.pos_embed"]
    by_hand = state["image_encoder.pos_embed"].reshape(1, 4, 2, 4, 2, -1).mean(dim=(2, 4))  # exactly half the grid
    torch.testing.assert_close(positions, by_hand)


def test_same_grid_needs_no_interpolation(model: nn.ModuleDict):
    _, report = match_published(model, published(side=64))
    assert report.interpolated == ()


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_published_sizes_match_without_a_rest(name: str):
    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
        model = sam(BACKBONES[name], 512, masks=5, stages=4)
    assert recognise(state) == name
    values, report = match_published(model, state)
    own = model.state_dict()
    assert {key: value.shape for key, value in values.items()} == {key: own[key].shape for key in report.loaded}
    assert set(report.loaded) | set(report.reinitialised) == set(own)
    assert set(report.loaded) | set(report.dropped) == set(state)
    assert len(report.interpolated) == 1 + 2 * len(BACKBONES[name].global_attn_indexes)


def adapted() -> nn.ModuleDict:
    """SAM's own decoder, and an adapter that published files do not have."""
    model = sam(SMALL, 64, masks=4, stages=2)
    model["adapter"] = nn.Linear(3, 3)
    return model


ADAPTER = {"adapter.weight", "adapter.bias"}


@pytest.mark.parametrize("masks", [4, 5])  # whether the classes happen to be as many as SAM's masks changes nothing
def test_what_is_replaced_is_said_by_the_caller(masks: int):
    model, state = sam(SMALL, 64, masks=masks, stages=2), published()
    _, report = match_published(model, state)
    heads = re.compile(r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head)\.")
    assert set(report.reinitialised) == {key for key in model.state_dict() if heads.match(key)}
    assert set(report.dropped) == {key for key in state if heads.match(key)}


def test_a_whole_model_and_a_decoder_of_ones_own():
    model, state = adapted(), published()
    _, report = match_published(model, state, added=ADAPTER, replaced=NOTHING)
    assert report.reinitialised == report.dropped == ()
    assert set(report.added) == ADAPTER and set(report.loaded) == set(state)
    decoder = re.compile(r"mask_decoder\.")
    model["mask_decoder"] = nn.ModuleDict({"head": nn.Conv2d(32, 5, 1)})
    _, report = match_published(model, state, added=ADAPTER, replaced=decoder)
    assert set(report.reinitialised) == {"mask_decoder.head.weight", "mask_decoder.head.bias"}
    assert set(report.dropped) == {key for key in state if decoder.match(key)}


def test_our_own_weights_are_loaded_whole(tmp_path: Path):
    torch.manual_seed(2)
    before, after = adapted(), adapted()
    save_file(before.state_dict(), tmp_path / "weights.safetensors")
    report = load_published(after, tmp_path / "weights.safetensors", added=ADAPTER)
    assert set(report.loaded) == set(before.state_dict())
    assert report.interpolated == report.reinitialised == report.added == report.dropped == ()
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in after.state_dict().items())


def test_the_tuned_parts_alone_are_refused(tmp_path: Path):
    state = {key: value for key, value in adapted().state_dict().items() if not key.startswith("image_encoder.blocks")}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(BadInputError, match=r"weights\.safetensors: these are the tuned parts of one of our runs"):
        load_published(adapted(), tmp_path / "weights.safetensors", added=ADAPTER)


def test_wrappers_are_stripped_and_twins_must_agree(model: nn.ModuleDict):
    state = {f"module.sam.{key}": value for key, value in published().items()}
    _, report = match_published(model, state)
    assert "image_encoder.pos_embed" in report.loaded
    twins = {"a.FacTu": torch.ones(2), "FacTu": torch.ones(2)}
    rules = [(r"^(a\.)?FacTu", "u")]
    assert list(canonical_state(twins, renames=rules)) == ["u"]
    with pytest.raises(BadInputError, match="FacTu: stands twice"):
        canonical_state(twins | {"FacTu": torch.zeros(2)}, renames=rules)


def test_every_fault_is_named_at_once_and_nothing_is_written(tmp_path: Path, model: nn.ModuleDict):
    state = published()
    del state["image_encoder.neck.0.weight"]
    state["image_encoder.blocks.0.attn.bogus"] = state.pop("image_encoder.blocks.0.attn.proj.bias")
    state["image_encoder.blocks.2.attn.rel_pos_h"] = torch.zeros(7, 8)  # a windowed block: its window is not ours
    state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 31)
    torch.save(state, tmp_path / "sam.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(BadInputError) as caught:
        load_published(model, tmp_path / "sam.pth")
    message = str(caught.value)
    assert str(tmp_path / "sam.pth") in message
    result = re.search(r"missing: (.*); unexpected: (.*); wrong shape: (.*?)\. ", message)
    assert result is not None, message
    missing, unexpected, wrong = result.groups()
    assert sorted(missing.split(", ")) == ["image_encoder.blocks.0.attn.proj.bias", "image_encoder.neck.0.weight"]
    assert unexpected == "image_encoder.blocks.0.attn.bogus"
    assert "image_encoder.blocks.2.attn.rel_pos_h is [7, 8], expected [5, 8]" in wrong
    assert "prompt_encoder.no_mask_embed.weight is [1, 31], expected [1, 32]" in wrong
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_truncated_file(tmp_path: Path, suffix: str, keep: float):
    path = tmp_path / f"weights{suffix}"
    state = published()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(IntegrityError, match=re.escape(str(path))):
        read_state(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, suffix: str, value: float):
    path = tmp_path / f"weights{suffix}"
    state = published()
    name = next(iter(state))
    state[name].view(-1)[0] = value
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(IntegrityError, match=rf"1 of its tensors .* for example {re.escape(name)}"):
        read_state(path)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_pickled_code_is_not_run(tmp_path: Path, write):
    write({"image_encoder.pos_embed": Evil(tmp_path / "ran")}, tmp_path / "sam.pth")
    with pytest.raises(IntegrityError, match="refused"):
        read_state(tmp_path / "sam.pth")
    assert not (tmp_path / "ran").exists()


def test_not_a_checkpoint(tmp_path: Path):
    with pytest.raises(BadInputError, match=r"missing\.pth: no such weights file"):
        read_state(tmp_path / "missing.pth")
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(BadInputError, match="flat mapping"):
        read_state(tmp_path / "nested.pth")
    (tmp_path / "text.pth").write_text("these are no weights")
    with pytest.raises(IntegrityError, match=r"text\.pth"):
        read_state(tmp_path / "text.pth")
    assert recognise({"conv.weight": torch.zeros(1)}) == "not a SAM image encoder"
