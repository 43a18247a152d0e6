"""What `teacher.options` may hold for each teacher: the keywords of its builder, with type, default and meaning."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from .plan_schema import Strict

Count = Annotated[int, Field(ge=1)]


class TeacherOptions(Strict):
    """What every teacher has."""

    tune: Literal["adapters", "decoder", "all"] = "adapters"
    """What learns when it starts from published weights: adapters and decoder, the decoder alone, or everything."""


class MasamOptions(TeacherOptions):
    """The options of masam (MA-SAM)."""

    rank: Count = 32
    """The rank of FacT."""
    scale: float = 1.0
    """The factor s before FacT's change of queries and values."""
    fact: bool = True
    """If false, the attention is SAM's own, without FacT."""
    adapters: Literal["before", "after", "both", "none"] = "both"
    """Where a block has 3-D adapters: before its attention, after it, both, or none at all."""
    adapter_channels: Count | None = None
    """The inner width of the 3-D adapters; null is the backbone's, 384 for SAM's sizes."""
    zero_init: bool = True
    """If true, adapters start as the identity; the authors' code draws them at random."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The dropout inside FacT while training."""
    decoder: Literal["progressive", "multi_scale", "sam"] = "progressive"
    """Up-sampling to full size, the same with skip connections from the encoder, or SAM's own decoder."""
    checkpointing: bool = False
    """If true, activations are computed twice instead of kept: less memory, more time."""


class MedsaOptions(TeacherOptions):
    """The options of medsa (Medical SAM Adapter)."""

    adapter: Literal["bottleneck", "lora"] = "bottleneck"
    """The paper's adapters, or LoRA in the image encoder as a control."""
    rank: Count = 64
    """The rank of all adapters."""
    scale: float = 0.05
    """The paper's s, the factor of the adapters parallel to an MLP."""
    sd_trans: Literal["add", "add_output", "concatenate", "concatenate_halves", "cross", "none"] | None = None
    """How depth joins space: null is `add`, through the adapter; `add_output` is the paper's; others are of Table 8."""
    conditioning: Literal["hyper", "add", "concatenate", "none"] = "hyper"
    """How the decoder's first adapter knows the prompt: HyP-Adpt, a sum, a concatenation, or not at all."""
    hyper_width: Count | None = None
    """The fixed inner length of HyP-Adpt; 64 grows with the rank as the paper's Table 7a does, null is the rank."""
    adapters: Literal["attention", "mlp", "both"] = "both"
    """Where a block of the image encoder has adapters: behind the attention, parallel to the MLP, or both."""
    layers: tuple[Count, Count] | None = None
    """The first and the last block of the image encoder that has adapters, from 1 on; null is all."""
    class_tokens: Literal["trained", "frozen"] = "trained"
    """Whether class tokens, their hypernetworks and the codes of distant slices learn, or the adapters alone."""
    iou_head: bool = False
    """If true, the decoder learns to predict the IoU of its masks, by the training's `iou_weight`."""
    slice_prompts: Literal["codes", "own"] = "codes"
    """Whether a prompt is known on all slices, by codes of the distance, or on its own slice alone as in the paper."""
    zero_init: bool = True
    """If true, adapters change nothing at the start."""
    checkpointing: bool = False
    """If true, activations are computed twice instead of kept: less memory, more time."""


class VolumeOptions(TeacherOptions):
    """What the teachers on SAM's encoder lifted to 3-D share."""

    upsample: Count | None = None
    """How often a patch is up-sampled on every axis inside the model; null makes a token 4 voxels wide."""
    slices: Count | None = None
    """The depth of a token in up-sampled slices; null is as many as it has pixels."""
    cube: Count = 8
    """The side of the cubes of tokens that attend to each other."""
    positions: Count = 64
    """The side of SAM's position tables in tokens, 64 in its published files."""
    decoder_channels: Count | None = None
    """The width of the mask decoder; null is half of the features'."""
    checkpointing: bool = False
    """If true, activations are computed twice instead of kept: less memory, more time."""


class AutosamOptions(VolumeOptions):
    """The options of autosam (AutoSAM Adapter)."""

    prompt_from: Literal["first", "last", "none"] = "last"
    """The feature that the prompt generator reads: the paper's last, the code's first; `none` has no generator."""
    adapter: Literal["paper", "code"] = "paper"
    """One ReLU and a start at zero as the paper has it, or three and a random start as in the authors' code."""
    decoder_resolution: Literal["half", "full"] = "half"
    """Where features and image meet in the mask decoder: at half of the patch's resolution (code) or at all of it."""
    generator_channels: Count | None = None
    """The width of the prompt generator; null is a sixteenth of the features'."""


class Sam3dOptions(VolumeOptions):
    """The options of sam3d (3DSAM-adapter)."""

    adapter: Literal["paper", "code"] = "code"
    """One ReLU and a start at zero as the paper has it, or three and a random start as in the authors' code."""
    prompted_features: tuple[Annotated[int, Field(ge=1, le=4)], ...] = (4,)
    """The features that points change, from 1, the shallowest, to 4, the deepest, which is always among them."""


class PublishedOptions(TeacherOptions):
    """The options of published (a model of SAM's kind as it is)."""

    convention: Literal["sam", "medsam", "efficientsam"] | None = None
    """Whose way of use: intensities, and the mask that is taken; null is that of the backbone."""


TEACHER_OPTIONS: dict[str, type[TeacherOptions]] = {
    "masam": MasamOptions,
    "medsa": MedsaOptions,
    "autosam": AutosamOptions,
    "sam3d": Sam3dOptions,
    "published": PublishedOptions,
}


def check_options(teacher: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError, which names every fault, for options that the teacher does not take; unknown teachers pass."""
    kind = TEACHER_OPTIONS.get(teacher)
    if kind is None:
        return
    try:
        kind.model_validate(dict(options))
    except ValidationError as error:
        known = ", ".join(sorted(kind.model_fields))
        faults = [
            f"teacher {teacher!r} has no option {fault['loc'][0]}: choose among {known}"
            if fault["type"] == "extra_forbidden"
            else f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (given: {fault['input']!r})"
            for fault in error.errors()
        ]
        raise ValueError("; ".join(faults)) from None
