"""What a config may say: every key with its type, default and meaning; those of a plan stand in plan_schema."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .plan_schema import PlanSettings, Strict


class Augmentation(Strict):
    """Random changes of a training patch; 0 or an empty list switches one off."""

    flip: tuple[Literal["d", "h", "w"], ...] = ()
    """The axes along which a patch may be mirrored."""
    flip_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The probability with which a patch is mirrored, drawn for every axis of `flip` by itself."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """The largest rotation in the plane of the slice, in degrees."""
    tilt_degrees: Annotated[float, Field(ge=0, le=90)] = 0.0
    """The largest rotation about the two in-plane axes, in degrees."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """A patch is zoomed by a factor in [1 - scale, 1 + scale]."""
    shear: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The largest shear, in mm along h per mm along w."""
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The largest shift along h and w, as a fraction of the patch."""
    space_probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The probability of rotate, tilt, scale and shear together, and that of translate."""
    brightness: Annotated[float, Field(ge=0)] = 0.0
    """The largest amount that is added to a patch, in units of the preprocessed intensity."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """A patch's contrast is multiplied by a factor in [1 - contrast, 1 + contrast]."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """The largest standard deviation of added Gaussian noise, in units of the preprocessed intensity."""
    sharpness: Annotated[float, Field(ge=0)] = 0.0
    """How much of the difference between a patch and its 3 x 3 mean is added or taken away, at most."""
    posterise: Annotated[int, Field(ge=0, le=8)] = 0
    """The fewest bits that are left of a patch's intensities, of 8 at most."""
    erase: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The longest side of a box that is set to the patch's mean, as a fraction of the patch's side."""
    intensity_probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The probability of each of the changes from `brightness` to `erase`."""


class Training(Strict):
    """Budget and optimiser of one run: linear warm-up, then the decay of the learning rate."""

    steps: Annotated[int, Field(ge=1)]
    """The number of optimiser steps."""
    batch: Annotated[int, Field(ge=1)] = 2
    """The number of patches in one batch."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """The number of batches whose gradients are added up for one step."""
    masks: Annotated[int, Field(ge=1)] = 1
    """Of a scan that has several masks, each a case of its own, at most so many go into one step together."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The learning rate after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """The optimiser's weight decay."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """The optimiser; `sgd` has a momentum of 0.9."""
    decay: Literal["polynomial", "exponential", "constant"] = "polynomial"
    """How the learning rate falls after the warm-up."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """The exponent of the decay `polynomial`: the learning rate is multiplied by (1 - progress) ** power."""
    final: Annotated[float, Field(gt=0, le=1)] = 0.01
    """The fraction of the learning rate at which the decay `exponential` ends."""
    warmup: Annotated[int, Field(ge=0)] = 10
    """The number of steps in which the learning rate rises linearly."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """The gradient is shortened to this norm when it is longer."""
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    """The weight of the Dice loss in L_seg."""
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 1.0
    """The weight of the cross-entropy in L_seg."""
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The fraction of the patches that are centred on a labelled voxel."""
    validate_every: Annotated[int, Field(ge=1)] = 100
    """The number of steps from one validation to the next; the weights with the best Dice are kept."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Training stops after so many validations without a better Dice; 0 never stops it early."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The decay of an exponential moving average of the weights, which is then validated and kept; 0 keeps none."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """The arithmetic of training: float32, or bfloat16 where autocast allows it."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the training patches."""


class PromptTraining(Strict):
    """Which prompts a network is trained with, drawn from the label maps of its training patches."""

    kind: Literal["none", "point", "points", "box"] = "none"
    """One point per class, several points that correct the mask in turn, or a box per class."""
    count: Annotated[int, Field(ge=1)] = 1
    """The largest number of points per class; it belongs to the kind `points`."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The probability that a step has prompts; never 1, because a network must segment without any as well."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The fraction of the tight box that a drawn box covers; it belongs to the kind `box`."""
    relax: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A drawn box's sides are longer by this fraction; it belongs to the kind `box`."""

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


class TeacherConfig(Strict):
    """The teacher: its network, its plan and its training."""

    name: str = "masam"
    """The teacher's architecture, one of those that `samkd info` lists."""
    backbone: str = "vit_tiny_p8"
    """The size of the image encoder, one of those that `samkd info` lists."""
    options: dict[str, Any] = Field(default={})
    """Options of this architecture's own builder, for example `adapter: code` of autosam."""
    hold_encoder: bool = False
    """If true, a teacher that starts from a run keeps its image encoder; only prompt encoder and mask decoder learn."""
    prompts: PromptTraining = PromptTraining()
    """The prompts it is trained with."""
    plan: PlanSettings
    """How a raw scan becomes its input."""
    training: Training
    """Its budget and optimiser."""


class Distillation(Strict):
    """The term L_mse of L = lambda * L_seg + (1 - lambda) * L_mse: how far the student is from its teachers."""

    loss: Literal["mse", "kl", "logits"] = "mse"
    """The squared error between class probabilities, Hinton's divergence, or the squared error between logits."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The temperature that softens the probabilities of the losses `kl` and `logits`."""
    boundary: Annotated[float, Field(ge=0)] = 0.0
    """The extra weight of voxels where the teachers' classes meet."""
    embedding: Annotated[float, Field(ge=0)] = 0.0
    """The weight of the distance between the student's and the teacher's image embeddings; it needs `--online`."""

    @model_validator(mode="after")
    def temperature_fits_the_loss(self):
        if self.temperature != 1 and self.loss == "mse":
            raise ValueError(f"loss 'mse' has no temperature (given: {self.temperature}); choose kl or logits")
        return self


class StudentConfig(Strict):
    """The student: its network, its plan, its training and how it learns from teachers."""

    name: str = "swinunetr-tiny"
    """The student's architecture, one of those that `samkd info` lists."""
    options: dict[str, Any] = Field(default={})
    """Options of this architecture's own builder, for example `slices: depth` of mobilesam."""
    prompts: PromptTraining = PromptTraining()
    """The prompts it is trained with; they make a package that takes prompts on the device."""
    plan: PlanSettings
    """How a raw scan becomes its input; the package carries the same plan to the device."""
    training: Training
    """Its budget and optimiser."""
    distillation: Distillation = Distillation()
    """How the distance to the teachers is measured."""


class Deployment(Strict):
    """What `samkd deploy` converts to, and how much accuracy that may cost."""

    precision: Literal["fp32", "fp16", "bf16", "int8"] = "int8"
    """The arithmetic of the packed model."""
    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.005
    """The largest loss of Dice against the torch network that the gate lets pass."""
    per_class: bool = True
    """If true, the gate judges the loss of every class, else that of their mean."""
    calibration: Annotated[int, Field(ge=1)] = 32
    """The number of patches of training cases with which int8 is calibrated."""
    geometry: Literal["training", "fastest"] = "training"
    """The patches and the overlap on the device: those of the plan, or the fastest that the gate lets pass."""


class Phantom(Strict):
    """How many cases of the built-in phantom to make."""

    training: Annotated[int, Field(ge=2)]
    """The number of training cases."""
    test: Annotated[int, Field(ge=1)]
    """The number of test cases."""
    seed: int = 0
    """The seed from which the cases are drawn."""
    organs_apart: bool = False
    """If true, every organ of a scan is a case of its own, so that only a prompt can say which one is meant."""


class SplitCases(Strict):
    """Case names by part, as a splits.json holds them."""

    train: Annotated[tuple[str, ...], Field(min_length=1)]
    """The names of the cases that training uses."""
    validation: Annotated[tuple[str, ...], Field(min_length=1)]
    """The names of the cases that choose the best weights and that the gate judges on."""
    test: tuple[str, ...] = ()
    """The names of the cases that are scored at the end."""


class Split(Strict):
    """How the labelled training cases are cut, by patient: a fraction or one of k folds for test, or all by name."""

    patient: str | None = None
    """A regular expression whose first group in a case's name is the patient; null takes the whole name."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The fraction of the patients that become test cases; 0 keeps the dataset's own test cases."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """The number of folds into which the patients are cut."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that is the test set, from 0 to folds - 1."""
    cases: SplitCases | None = None
    """Every part by name."""

    @model_validator(mode="after")
    def one_way(self):
        if sum((self.test > 0, self.folds is not None, self.cases is not None)) > 1:
            raise ValueError("give one of test, folds and cases")
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold} with folds {self.folds}: expected 0 to folds - 1")
        return self


class Config(Strict):
    """Everything a dataset needs, from the scan to the package."""

    name: str
    """The config's name; runs and packages are named after it."""
    description: str = ""
    """What the config is for; it stands in lists and on the model card."""
    data: str | None = None
    """The dataset's folder, which `--data` on the command line replaces."""
    phantom: Phantom | None = None
    """The built-in phantom to make where no dataset is named."""
    seed: int = 0
    """The seed of the validation cases, the initial weights and the patches."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The fraction of the training cases that become validation cases."""
    split: Split | None = None
    """How cases are cut; null keeps the dataset's own test cases and draws the validation cases one by one."""
    modality: Literal["CT", "MR"] | None = None
    """The modality to use of a dataset that holds both (AMOS22)."""
    labelled: Annotated[int, Field(ge=2)] | None = None
    """Use the masks of so many training cases only, the validation cases among them unless `split` sets those apart."""
    labelled_seed: int = 0
    """The seed that draws the cases of `labelled`."""
    classes: Annotated[dict[str, Annotated[tuple[str, ...], Field(min_length=1)]], Field(min_length=1)] | None = None
    """The classes to learn, each made of classes of the dataset by name; all others become background. Null: all."""
    teacher: TeacherConfig
    """The teacher."""
    student: StudentConfig
    """The student."""
    lambda_: Annotated[float, Field(ge=0, le=1, alias="lambda")] = 0.5
    """The weight of L_seg in L = lambda * L_seg + (1 - lambda) * L_mse; 1 is training without a teacher."""
    deployment: Deployment = Deployment()
    """The package."""
