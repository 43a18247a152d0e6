"""What a config may say: every key with its type, default and meaning; those of a plan stand in plan_schema."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .evaluation_schema import Evaluation
from .plan_schema import PlanSettings, Strict, Triple, added
from .teacher_options import check_options


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
    intensity_scale: Annotated[float, Field(ge=0, lt=1)] = added(0.0)
    """A patch's intensities are multiplied by a factor in [1 - intensity_scale, 1 + intensity_scale]."""
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

    steps: Annotated[int, Field(ge=0)] = 0
    """The number of optimiser steps; 0 where `epochs` says it."""
    epochs: Annotated[int, Field(ge=0)] = added(0)
    """The number of passes over the labelled training cases, a patch of each, in place of `steps`."""
    batch: Annotated[int, Field(ge=1)] = 2
    """The number of patches in one batch."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """The number of batches whose gradients are added up for one step."""
    patches: tuple[Triple, ...] = added(())
    """Further patch sizes (d, h, w): each step takes one of these or the plan's, for `deploy --geometry fastest`."""
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
    schedule_steps: Annotated[int, Field(ge=1)] | None = added(None)
    """The step at which the decay would end, where training ends earlier or later; null is the last step."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """The gradient is shortened to this norm when it is longer."""
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    """The weight of the Dice loss in L_seg."""
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 1.0
    """The weight of the cross-entropy in L_seg."""
    focal_weight: Annotated[float, Field(ge=0)] = added(0.0)
    """The weight of SAM's focal loss in L_seg; SAM has 20 against 1 for Dice."""
    iou_weight: Annotated[float, Field(ge=0)] = added(0.0)
    """The weight of the squared error of the IoU that medsa's mask decoder predicts for its own masks."""
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The fraction of the patches that are centred on a labelled voxel."""
    validate_every: Annotated[int, Field(ge=1)] = 100
    """The number of steps from one validation to the next; the weights with the best Dice are kept, or the last."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Training stops after so many validations without a better Dice; 0 never stops it early."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The decay of an exponential moving average of the weights, which is then validated and kept; 0 keeps none."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """The arithmetic: float32, or bfloat16 where autocast allows it; `auto` is bfloat16 on a CUDA card that has it."""
    compile: bool = added(False)
    """If true, torch.compile compiles the network for the training steps; validation and packages are as without."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the training patches."""

    @model_validator(mode="after")
    def one_length(self):
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(f"steps {self.steps} and epochs {self.epochs}: give one of the two, 1 or more")
        return self


class PromptTraining(Strict):
    """Which prompts a network is trained with, drawn from the label maps of its training patches."""

    kind: Literal["none", "point", "points", "box", "mixed"] = "none"
    """One point per class, several that correct the mask in turn, a box per class, or points and boxes by turns."""
    count: Annotated[int, Field(ge=1)] = 1
    """The largest number of points per class; it belongs to the kinds `points` and `mixed`."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The probability that a step has prompts; at 1 the network does not learn to segment without any."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The fraction of the tight box that a drawn box covers; it belongs to the kinds `box` and `mixed`."""
    relax: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A drawn box's sides are longer by this fraction; it belongs to the kinds `box` and `mixed`."""
    per_slice: bool = added(False)
    """If true, every slice that holds a class has points or a box of its own (medsa's option `slice_prompts: own`)."""
    positive: bool = added(False)
    """If true, all points lie inside the class and none corrects the mask; it belongs to `points` and `mixed`."""
    jitter: Annotated[int, Field(ge=0)] = added(0)
    """Every edge of a drawn box moves by up to so many voxels in either direction; it belongs to `box` and `mixed`."""
    whole_case: bool = added(False)
    """If true, a box is that of the whole case, cut at the patch, as it is in validation; it belongs to `box`."""

    @property
    def drawn(self) -> str:
        """The kind of one prompt: "points" are several of the kind "point", and "mixed" is validated with a point."""
        return "point" if self.kind in ("points", "mixed") else self.kind

    @property
    def kinds(self) -> frozenset[str]:
        """All kinds that a network sees."""
        return frozenset({"point", "box"} if self.kind == "mixed" else {self.drawn} - {"none"})

    @model_validator(mode="after")
    def options_fit_the_kind(self):
        if self.kind != "mixed" and (self.count > 1) != (self.kind == "points"):
            raise ValueError(f"kind {self.kind!r} with count {self.count}: kind 'points' has a count of 2 or more")
        if (self.overlap < 1 or self.relax > 0 or self.jitter) and self.kind not in ("box", "mixed"):
            raise ValueError(f"kind {self.kind!r} takes neither overlap, relax nor jitter; they belong to kind 'box'")
        if self.positive and self.kind not in ("points", "mixed"):
            raise ValueError(f"kind {self.kind!r} takes no positive; it belongs to kind 'points'")
        if self.whole_case and (self.kind != "box" or self.per_slice):
            raise ValueError(f"kind {self.kind!r} takes no whole_case; it belongs to kind 'box' without per_slice")
        if self.per_slice and self.kind == "none":
            raise ValueError("kind 'none' takes no per_slice; choose a kind of prompts")
        return self


class TeacherConfig(Strict):
    """The teacher: its network, its plan and its training."""

    name: str = "masam"
    """The teacher's architecture, one of those that `samkd info` lists."""
    backbone: str = "vit_tiny_p8"
    """The size of the image encoder, one of those that `samkd info` lists."""
    options: dict[str, Any] = Field(default={})
    """Options of this architecture, for example `adapter: code` of autosam; each teacher's own table lists them."""
    hold_encoder: bool = False
    """If true, a teacher that starts from a run keeps its image encoder; only prompt encoder and mask decoder learn."""
    prompts: PromptTraining = PromptTraining()
    """The prompts it is trained with."""
    plan: PlanSettings
    """How a raw scan becomes its input."""
    training: Training
    """Its budget and optimiser."""

    @model_validator(mode="after")
    def options_fit_the_teacher(self):
        check_options(self.name, self.options)
        return self


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
    projection: bool = added(True)
    """If false, the student's embedding is compared as it is, for a student that shares its teacher's decoder."""
    embedding_steps: Annotated[int, Field(ge=0)] = added(0)
    """So many steps at the start learn from the embedding alone, before any mask is decoded."""
    cache_embeddings: bool = added(False)
    """If true, the teachers' embeddings of the training slices are kept on disk, which augmentation would defeat."""
    over_classes: Literal["sum", "mean"] = added("sum")
    """Whether a voxel's distance is the sum over the classes or their mean, which is K times less for K classes."""
    hard_masks: bool = added(False)
    """If true, the teachers' likeliest class takes the place of their probabilities."""
    balance_classes: bool = added(False)
    """If true, all of the teachers' classes in a batch weigh the same, whatever their size."""
    dice: Annotated[float, Field(ge=0)] = added(0.0)
    """The weight of a Dice loss between probabilities, in which every class counts the same; it is added to `loss`."""

    @model_validator(mode="after")
    def temperature_fits_the_loss(self):
        if self.temperature != 1 and self.loss == "mse":
            raise ValueError(f"loss 'mse' has no temperature (given: {self.temperature}); choose kl or logits")
        if not self.embedding and (self.embedding_steps or self.cache_embeddings or not self.projection):
            raise ValueError("embedding_steps, cache_embeddings and projection belong to an embedding above 0")
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
    cpu: Literal["avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"] | None = None
    """The class of processors that the precision is judged for and chosen for; null takes this machine's as it is."""
    temperature: bool = False
    """If true, a temperature that is fitted to the validation cases scales the probabilities that the package gives."""


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
    validation: tuple[str, ...] = ()
    """The names of the cases that choose the best weights and that the gate judges on; none leaves it to the config."""
    test: tuple[str, ...] = ()
    """The names of the cases that are scored at the end."""


class Split(Strict):
    """How the labelled training cases are cut: a fraction of the patients or one of k folds for test, or by name."""

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
    test_names: str | None = None
    """A regular expression: the cases with a name in which it is found are the test set, all others are not."""
    only: str | None = None
    """A regular expression: cases with a name in which it is not found are left out, before all else."""

    @model_validator(mode="after")
    def one_way(self):
        ways = (self.test > 0, self.folds is not None, self.cases is not None, self.test_names is not None)
        if sum(ways) > 1:
            raise ValueError("give one of test, folds, cases and test_names")
        for key in ("test_names", "only"):
            try:
                re.compile(getattr(self, key) or "")
            except re.error as error:
                raise ValueError(f"{key} is no regular expression ({error})") from None
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
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """The fraction of the training cases that become validation cases; 0 trains on all and keeps the last weights."""
    split: Split | None = None
    """How cases are cut; null keeps the dataset's own test cases and draws the validation cases one by one."""
    skip_empty: bool = False
    """If true, training cases with a mask that holds none of the classes are left out; so are such test cases."""
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
    evaluation: Evaluation = Evaluation()
    """The scores that verbs print, and their rules."""
