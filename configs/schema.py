"""What a recipe may say: types. Unknown keys and wrong values are reported together, never one at a time."""

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import UsageError

Triple = tuple[int, int, int]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(Strict):
    low: float
    high: float

    @model_validator(mode="after")
    def ordered(self):
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class Window(Range):
    """Clip to [low, high] (HU for CT) and map to [0, 1]."""

    rule: Literal["window"]


class Clip(Range):
    """Clip to [low, high], in the scan's own units (HU for CT)."""

    rule: Literal["clip"]


class ShiftScale(Strict):
    """(value - subtract) / divide, both in the scan's own units (HU for CT)."""

    rule: Literal["shift_scale"]
    subtract: float
    divide: Annotated[float, Field(gt=0)]


class Percentile(Range):
    """Clip to the scan's own percentiles and map to [0, 1]."""

    rule: Literal["percentile"]
    low: Annotated[float, Field(ge=0, lt=100)] = 0.5
    high: Annotated[float, Field(gt=0, le=100)] = 99.5


class ZScore(Strict):
    """Subtract the mean and divide by the standard deviation, over the scan or over its nonzero voxels."""

    rule: Literal["zscore"]
    nonzero: bool = False


Rule = Annotated[Window | Clip | ShiftScale | Percentile | ZScore, Field(discriminator="rule")]


class PlanSettings(Strict):
    """How a raw scan becomes the network's input: the fields of volumes.plan.Plan, checked."""

    orientation: Annotated[str, Field(pattern="^[LRAPSI]{3}$")] = "SPL"
    spacing: tuple[float | None, float | None, float | None] | None = None  # mm along d, h, w
    size: tuple[int | None, int | None, int | None] | None = None  # voxels along d, h, w
    long_side: Annotated[int, Field(ge=1)] | None = None  # voxels along the longer of h and w; pixels stay square
    intensity: tuple[Rule, ...]
    patch: Triple
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @model_validator(mode="after")
    def one_axis_each(self):
        axes = {"LR": 0, "AP": 0, "SI": 0}
        for pair in axes:
            if sum(code in pair for code in self.orientation) != 1:
                raise ValueError(f"orientation {self.orientation!r} must name one of each of L/R, A/P, S/I")
        if self.long_side and any(
            grid is not None and (grid[1] is not None or grid[2] is not None) for grid in (self.size, self.spacing)
        ):
            raise ValueError("long_side settles h and w: leave both null in size and spacing")
        return self


class Augmentation(Strict):
    """Random changes of a training patch; 0 or an empty list switches one off."""

    flip: tuple[Literal["d", "h", "w"], ...] = ()
    flip_probability: Annotated[float, Field(ge=0, le=1)] = 0.5  # of every axis by itself
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0  # in the plane of the slice
    tilt_degrees: Annotated[float, Field(ge=0, le=90)] = 0.0  # about the two in-plane axes
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0  # zoom in [1 - scale, 1 + scale]
    shear: Annotated[float, Field(ge=0, lt=1)] = 0.0  # mm along h per mm along w
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.0  # along h and w, as a share of the patch
    space_probability: Annotated[float, Field(ge=0, le=1)] = 1.0  # of rotate, tilt, scale and shear; of translate
    brightness: Annotated[float, Field(ge=0)] = 0.0  # shift, in units of the prepared intensity
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0  # factor in [1 - contrast, 1 + contrast]
    noise: Annotated[float, Field(ge=0)] = 0.0  # largest standard deviation of Gaussian noise
    sharpness: Annotated[float, Field(ge=0)] = 0.0  # what is added or taken of the difference to a 3 x 3 mean
    posterise: Annotated[int, Field(ge=0, le=8)] = 0  # fewest bits left of the patch's intensities, of 8 at most
    erase: Annotated[float, Field(ge=0, lt=1)] = 0.0  # a box set to the patch's mean: its longest side, of the patch's
    intensity_probability: Annotated[float, Field(ge=0, le=1)] = 1.0  # of every change from brightness to erase


class Training(Strict):
    """Budget and optimiser of one run: linear warm-up, then the decay."""

    steps: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)] = 2
    accumulate: Annotated[int, Field(ge=1)] = 1
    masks: Annotated[int, Field(ge=1)] = 1  # of a scan that has several, each a case: so many in one step, at most
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"  # sgd with momentum 0.9
    decay: Literal["polynomial", "exponential", "constant"] = "polynomial"
    power: Annotated[float, Field(gt=0)] = 0.9  # polynomial: (1 - progress) ** power
    final: Annotated[float, Field(gt=0, le=1)] = 0.01  # exponential: share of the learning rate at the end
    warmup: Annotated[int, Field(ge=0)] = 10
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 1.0
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.5  # share of patches centred on a labelled voxel
    validate_every: Annotated[int, Field(ge=1)] = 100
    patience: Annotated[int, Field(ge=0)] = 0  # stop after so many validations without a better Dice; 0: never
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the averaged weights, which are then validated and kept
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    augmentation: Augmentation = Augmentation()


class PromptTraining(Strict):
    """Which prompts a network is trained with, drawn from the labels of its training patches."""

    kind: Literal["none", "point", "points", "box"] = "none"  # one click; clicks that correct the mask; a box
    count: Annotated[int, Field(ge=1)] = 1  # points: at most so many per class
    # Share of the steps with prompts. Never all: without any a network must segment too, to teach and on the device.
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    overlap: Annotated[float, Field(gt=0, le=1)] = 1.0  # box: share of the tight box that it covers
    relax: Annotated[float, Field(ge=0, le=1)] = 0.0  # box: its sides are longer by this share

    @property
    def drawn(self) -> str:
        """The kind of one prompt: "points" are several of the kind "point"."""
        return "point" if self.kind == "points" else self.kind

    @model_validator(mode="after")
    def options_fit_the_kind(self):
        if (self.count > 1) != (self.kind == "points"):
            raise ValueError(f"kind {self.kind!r} with count {self.count}: kind 'points' has a count of 2 or more")
        if (self.overlap < 1 or self.relax > 0) and self.kind != "box":
            raise ValueError(f"kind {self.kind!r} takes neither overlap nor relax; they belong to kind 'box'")
        return self


class Teacher(Strict):
    name: str = "masam"
    backbone: str = "vit_tiny_p8"
    options: dict[str, Any] = {}
    hold_encoder: bool = False  # of a teacher that starts from a run: only prompt encoder and mask decoder learn
    prompts: PromptTraining = PromptTraining()
    plan: PlanSettings
    training: Training


class Distillation(Strict):
    """The term L_mse of L = lambda * L_seg + (1 - lambda) * L_mse: how far the student is from its teachers."""

    loss: Literal["mse", "kl", "logits"] = "mse"  # between class probabilities; Hinton's; between logits
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of kl and logits
    boundary: Annotated[float, Field(ge=0)] = 0.0  # extra weight of voxels where the teachers' classes meet
    embedding: Annotated[float, Field(ge=0)] = 0.0  # weight of the distance of image embeddings; needs --online

    @model_validator(mode="after")
    def temperature_fits_the_loss(self):
        if self.temperature != 1 and self.loss == "mse":
            raise ValueError(f"loss 'mse' has no temperature (given: {self.temperature}); choose kl or logits")
        return self


class Student(Strict):
    name: str = "swinunetr-tiny"
    options: dict[str, Any] = {}
    prompts: PromptTraining = PromptTraining()
    plan: PlanSettings
    training: Training
    distillation: Distillation = Distillation()


class Deployment(Strict):
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "int8"
    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.005  # largest loss of Dice
    per_class: bool = True  # of every class, or of their mean
    calibration: Annotated[int, Field(ge=1)] = 32  # patches of training cases


class Phantom(Strict):
    """How many cases of the built-in phantom to make."""

    training: Annotated[int, Field(ge=2)]
    test: Annotated[int, Field(ge=1)]
    seed: int = 0
    organs_apart: bool = False  # every organ of a scan is a case of its own: only a prompt can say which is meant


class SplitCases(Strict):
    """Case names by part, as a splits.json holds them."""

    train: Annotated[tuple[str, ...], Field(min_length=1)]
    validation: Annotated[tuple[str, ...], Field(min_length=1)]
    test: tuple[str, ...] = ()


class Split(Strict):
    """How the labelled training cases are cut, by patient: a share or one of k folds for test, or all by name."""

    patient: str | None = None  # regular expression: its first group in a case's name; default the whole name
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the patients; 0 keeps the dataset's own test cases
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0  # 0 to folds - 1
    cases: SplitCases | None = None

    @model_validator(mode="after")
    def one_way(self):
        if sum((self.test > 0, self.folds is not None, self.cases is not None)) > 1:
            raise ValueError("give one of test, folds and cases")
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold} with folds {self.folds}: expected 0 to folds - 1")
        return self


class Recipe(Strict):
    """Everything a dataset needs, from the scan to the package."""

    name: str
    description: str = ""
    data: str | None = None  # dataset folder, when none is given on the command line
    phantom: Phantom | None = None  # make the built-in phantom instead
    seed: int = 0
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15  # share of the training cases
    split: Split | None = None  # default: the dataset's own test cases, validation drawn by case
    modality: Literal["CT", "MR"] | None = None  # of a dataset that holds both (AMOS22)
    # Use the masks of so many training cases; validation cases are among them, unless `split` sets those apart.
    labelled: Annotated[int, Field(ge=2)] | None = None
    labelled_seed: int = 0  # draws them
    # The classes to learn, each made of classes of the dataset by name; all others become background. Default: all.
    classes: Annotated[dict[str, Annotated[tuple[str, ...], Field(min_length=1)]], Field(min_length=1)] | None = None
    teacher: Teacher
    student: Student
    lambda_: Annotated[float, Field(ge=0, le=1, alias="lambda")] = 0.5
    deployment: Deployment = Deployment()


def validated(values: dict, *, source: str) -> Recipe:
    """A mapping as a Recipe. Raises UsageError naming every fault at once."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(fault) for fault in error.errors()]
        raise UsageError(f"{source}: {len(lines)} fault(s)\n  " + "\n  ".join(lines)) from None


def _explain(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        given = "" if fault["type"] == "missing" else f" (given: {fault['input']!r})"
        return f"{where}: {fault['msg']}{given}"
    close = difflib.get_close_matches(str(fault["loc"][-1]), _known_keys(), n=1)
    return f"{where}: unknown key" + (f"; did you mean {close[0]!r}?" if close else "")


def _known_keys() -> set[str]:
    keys: set[str] = set()
    pending: list[Any] = [Recipe]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, field in kind.model_fields.items():
                keys.add(field.alias or name)
                pending.append(field.annotation)
        else:
            pending.extend(get_args(kind))
    return keys
