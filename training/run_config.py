"""What decides a run's result: the typed record that a run folder keeps as ``config.yaml``."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import BadInputError
from ..volumes.plan import Plan

FORMAT = 2  # of config.yaml; files without a number are of format 1
FAMILIES = ("teachers", "students")
STAGES = ("teach", "distill", "control")
_NEEDED = ("stage", "network", "objective", "plan", "labels", "channels", "cases", "seed", "data", "recipe")


def digest(values: dict[str, Any]) -> str:
    """sha256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def expect(sound: bool, name: str, value: Any, expected: str) -> None:
    """Raises BadInputError unless `sound`: what a key of config.yaml holds, and what it should."""
    if not sound:
        raise BadInputError(f"{name} is {repr(value)[:100]}; expected {expected}")


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """All that a network's builder needs: ``family`` is one of FAMILIES, ``patch`` (D, H, W), ``options`` its own.

    ``backbone`` names a teacher's image encoder; a student has none to choose.
    """

    family: str
    name: str
    in_channels: int
    num_classes: int
    patch: tuple[int, int, int]
    backbone: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return values | {"patch": list(self.patch)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NetworkSpec":
        """Format 1 has the family under the name ``room``. Raises BadInputError for values of another kind."""
        values = dict(values)
        family = values.pop("room", None) or values.pop("family")
        spec = cls(**(values | {"family": family, "patch": tuple(values["patch"])}))
        expect(spec.family in FAMILIES, "network.family", spec.family, f"one of {FAMILIES}")
        expect(isinstance(spec.name, str), "network.name", spec.name, "a name")
        expect(spec.backbone is None or isinstance(spec.backbone, str), "network.backbone", spec.backbone, "a name")
        for name in ("in_channels", "num_classes"):
            count = getattr(spec, name)
            expect(type(count) is int and 1 <= count <= 65536, f"network.{name}", count, "a number of 1 to 65536")
        sides = len(spec.patch) == 3 and all(type(side) is int and side > 0 for side in spec.patch)
        expect(sides, "network.patch", spec.patch, "three whole numbers above 0")
        expect(_is_mapping(spec.options), "network.options", spec.options, "a mapping")
        return spec


@dataclass(frozen=True)
class PublishedFile:
    """A published checkpoint that a network starts from."""

    name: str
    sha256: str

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PublishedFile":
        """Raises BadInputError for values of another kind."""
        file = cls(**values)
        texts = isinstance(file.name, str) and isinstance(file.sha256, str)
        expect(texts, "objective.pretrained", values, "name and sha256 of a file")
        return file


@dataclass(frozen=True)
class TeacherRecord:
    """One of the runs that teach: its folder's name, the sha256 of its weights, its part of the average (0 to 1).

    With ``predictions`` it is no run but a folder of predictions, and the sha256 is theirs.
    """

    run: str
    sha256: str
    share: float
    predictions: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A run's has no key ``predictions``, so that it is what earlier releases wrote."""
        values = asdict(self)
        return values if self.predictions else {key: values[key] for key in ("run", "sha256", "share")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TeacherRecord":
        """Raises BadInputError for values of another kind."""
        record = cls(**values)
        expect(isinstance(record.run, str), "run of a teacher", record.run, "the name of a folder")
        expect(isinstance(record.sha256, str), "sha256 of a teacher", record.sha256, "text")
        share = type(record.share) in (int, float) and 0 <= record.share <= 1
        expect(share, "share of a teacher", record.share, "a number of 0 to 1")
        expect(type(record.predictions) is bool, "predictions of a teacher", record.predictions, "true or false")
        return record


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What a student learns besides the labels: from whom, by which distance, and from how many unlabelled cases.

    ``distillation`` is the config section of that name. ``unlabelled`` has the number of ``cases`` and a hash of their
    ``content``. With ``online`` the teachers see the student's very patches.
    """

    teachers: tuple[TeacherRecord, ...]
    distillation: dict[str, Any]
    online: bool
    unlabelled: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the objective's own dict."""
        return asdict(self) | {"teachers": [teacher.to_dict() for teacher in self.teachers]}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a run minimises, and from where it starts.

    ``lambda_`` is the weight of the labels against the teachers, 1 without any. ``pretrained`` is the published
    checkpoint at the start, ``init_run`` the sha256 of the weights of the run at the start; with ``freeze_encoder`` the
    image encoder of that run is kept. ``prompts`` is the config section of that name, None without prompts.
    """

    lambda_: float = 1.0
    pretrained: PublishedFile | None = None
    init_run: str | None = None
    freeze_encoder: bool = False
    prompts: dict[str, Any] | None = None
    teaching: Teaching | None = None

    @property
    def teachers(self) -> tuple[TeacherRecord, ...]:
        """The runs that teach; none for labels alone."""
        return self.teaching.teachers if self.teaching else ()

    def to_dict(self) -> dict[str, Any]:
        """Format 2: keys without a value are left out."""
        values = {
            "lambda": self.lambda_,
            "pretrained": asdict(self.pretrained) if self.pretrained else None,
            "init_run": self.init_run,
            "freeze_encoder": self.freeze_encoder or None,
            "prompts": self.prompts,
            **(self.teaching.to_dict() if self.teaching else {}),
        }
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Objective":
        """Format 1 has a teacher's ``init_run`` and a student's ``pretrained`` under the one name ``start``.

        Raises BadInputError for values of another kind.
        """
        expect(_is_mapping(values), "objective", values, "a mapping")
        lambda_: Any = values.get("lambda")
        prompts: Any = values.get("prompts")
        share = type(lambda_) in (int, float) and 0 <= lambda_ <= 1
        expect(share, "objective.lambda", lambda_, "a number of 0 to 1")
        expect(prompts is None or _is_mapping(prompts), "objective.prompts", prompts, "a mapping")
        start = values.get("start")
        pretrained = values.get("pretrained") or (start if isinstance(start, dict) else None)
        teaching = None
        if "teachers" in values:
            for name in ("distillation", "unlabelled"):
                expect(_is_mapping(values[name]), f"objective.{name}", values[name], "a mapping")
            teaching = Teaching(
                teachers=tuple(TeacherRecord.from_dict(teacher) for teacher in values["teachers"]),
                distillation=values["distillation"],
                online=values["online"],
                unlabelled=values["unlabelled"],
            )
        init_run = values.get("init_run") or (start if isinstance(start, str) else None)
        expect(init_run is None or isinstance(init_run, str), "objective.init_run", init_run, "a sha256")
        return cls(
            lambda_=lambda_,
            pretrained=PublishedFile.from_dict(pretrained) if pretrained else None,
            init_run=init_run,
            freeze_encoder=bool(values.get("freeze_encoder") or values.get("held encoder")),
            prompts=prompts,
            teaching=teaching,
        )


@dataclass(frozen=True, kw_only=True)
class CaseNames:
    """Names of the cases by part; ``content`` hashes the bytes of the labelled ones."""

    dataset: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    content: str

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CaseNames":
        """Raises BadInputError for values of another kind."""
        for name in ("train", "validation"):
            expect(_are_names(values[name]), f"cases.{name}", values[name], "a list of names")
        for name in ("dataset", "content"):
            expect(isinstance(values[name], str), f"cases.{name}", values[name], "text")
        train, validation = tuple(values["train"]), tuple(values["validation"])
        return cls(dataset=values["dataset"], train=train, validation=validation, content=values["content"])


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The resolved configuration of one run: all that decides its result, and where its data lies.

    ``stage`` is one of STAGES. ``class_names`` are by value, ``training`` the config section of that name.
    ``data`` and ``pretrained_path`` are where dataset and published checkpoint lay, ``user_config`` is the whole
    configuration file for later stages: these three are no part of the hash.
    """

    stage: str
    network: NetworkSpec
    objective: Objective
    plan: Plan
    class_names: dict[int, str]
    channels: tuple[str, ...]
    training: dict[str, Any]
    seed: int
    cases: CaseNames
    data: str
    user_config: dict[str, Any]
    pretrained_path: str | None = None

    @property
    def adapted_file(self) -> PublishedFile | None:
        """The published checkpoint that is needed, besides the run's weights, to put the network together again.

        A student's weights are whole: it only started from such a file.
        """
        return self.objective.pretrained if self.network.family == "teachers" else None

    def digest(self) -> str:
        """sha256 of what decides the run's result."""
        return digest(self.hashed())

    def hashed(self) -> dict[str, Any]:
        """What is hashed, in the names of format 1: so the hash of a run never changes, nor the name of its folder."""
        network, objective = self.network.to_dict(), self.objective.to_dict()
        network["room"] = network.pop("family")
        pretrained, init_run = objective.pop("pretrained", None), objective.pop("init_run", None)
        if objective.pop("freeze_encoder", None):
            objective["held encoder"] = True
        if self.network.family == "teachers":
            objective["pretrained"] = pretrained
        start = init_run if self.network.family == "teachers" else pretrained
        if start is not None:
            objective["start"] = start
        values = {
            "stage": self.stage,
            "network": network,
            "objective": objective,
            "plan": self.plan.to_dict(),
            "labels": {str(value): name for value, name in self.class_names.items()},
            "channels": self.channels,
            "training": self.training,
            "seed": self.seed,
            "cases": asdict(self.cases),
        }
        return json.loads(json.dumps(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.yaml, of format 2."""
        values = {
            "format": FORMAT,
            **self.hashed(),
            "network": self.network.to_dict(),
            "objective": self.objective.to_dict(),
            "data": self.data,
            "recipe": self.user_config,
        }
        if self.pretrained_path:
            values["pretrained_path"] = self.pretrained_path
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls, values: Any) -> "RunConfig":
        """Read the values of config.yaml, of format 1 or 2. Raises BadInputError when they are no run's."""
        if not isinstance(values, dict) or not set(_NEEDED) <= values.keys():
            raise BadInputError(f"config.yaml is not a run's; expected the keys {sorted(_NEEDED)}")
        if values.get("format", 1) not in (1, FORMAT):
            raise BadInputError(
                f"config.yaml is of format {values['format']}, this samkd reads up to {FORMAT}; update samkd"
            )
        try:
            config = cls(
                stage=values["stage"],
                network=NetworkSpec.from_dict(values["network"]),
                objective=Objective.from_dict(values["objective"]),
                plan=Plan.from_dict(values["plan"]),
                class_names={int(value): name for value, name in values["labels"].items()},
                channels=tuple(values["channels"]),
                training=values.get("training", {}),
                seed=values["seed"],
                cases=CaseNames.from_dict(values["cases"]),
                data=str(values["data"]),
                user_config=values["recipe"],
                pretrained_path=values.get("pretrained_path") or values.get("base"),
            )
            config.check(values["channels"])
            config.digest()  # also values that are no JSON, such as dates, end here
            return config
        except BadInputError as error:
            raise BadInputError(f"config.yaml is not a run's: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise BadInputError(f"config.yaml is not a run's: {type(error).__name__} {error}") from None

    def check(self, channels: Any) -> None:
        """Raises BadInputError for values that cannot be a run's; ``channels`` are those that config.yaml lists."""
        network, path = self.network, self.pretrained_path
        expect(self.stage in STAGES, "stage", self.stage, f"one of {STAGES}")
        names = [self.class_names.get(value) for value in range(network.num_classes)]
        classes = len(names) == len(self.class_names) and all(isinstance(name, str) for name in names)
        expect(classes, "labels", self.class_names, f"the names of the classes 0 to {network.num_classes - 1}")
        count = _are_names(channels) and len(channels) == network.in_channels
        expect(count, "channels", channels, f"a list of {network.in_channels} name(s)")
        expect(_is_mapping(self.training), "training", self.training, "a mapping")
        expect(type(self.seed) is int, "seed", self.seed, "a whole number")
        expect(_is_mapping(self.user_config) and "name" in self.user_config, "recipe", self.user_config, "a config")
        expect(path is None or isinstance(path, str), "pretrained_path", path, "a path")
