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
        """Format 1 has the family under the name ``room``."""
        values = dict(values)
        family = values.pop("room", None) or values.pop("family")
        return cls(**(values | {"family": family, "patch": tuple(values["patch"])}))


@dataclass(frozen=True)
class PublishedFile:
    """A published checkpoint that a network starts from."""

    name: str
    sha256: str


@dataclass(frozen=True)
class TeacherRecord:
    """One of the runs that teach: its folder's name, the sha256 of its weights, its part of the average (0 to 1)."""

    run: str
    sha256: str
    share: float


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
            **(asdict(self.teaching) if self.teaching else {}),
        }
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Objective":
        """Format 1 has a teacher's ``init_run`` and a student's ``pretrained`` under the one name ``start``."""
        start = values.get("start")
        pretrained = values.get("pretrained") or (start if isinstance(start, dict) else None)
        teaching = None
        if "teachers" in values:
            teaching = Teaching(
                teachers=tuple(TeacherRecord(**teacher) for teacher in values["teachers"]),
                distillation=values["distillation"],
                online=values["online"],
                unlabelled=values["unlabelled"],
            )
        return cls(
            lambda_=values.get("lambda", 1.0),
            pretrained=PublishedFile(**pretrained) if pretrained else None,
            init_run=values.get("init_run") or (start if isinstance(start, str) else None),
            freeze_encoder=bool(values.get("freeze_encoder") or values.get("held encoder")),
            prompts=values.get("prompts"),
            teaching=teaching,
        )


@dataclass(frozen=True, kw_only=True)
class CaseNames:
    """Names of the cases by part; ``content`` hashes the bytes of the labelled ones."""

    dataset: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    content: str


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The resolved configuration of one run: all that decides its result, and where its data lies.

    ``stage`` is one of STAGES. ``labels`` are the class names by value, ``training`` the config section of that name.
    ``data`` and ``pretrained_path`` are where dataset and published checkpoint lay, ``user_config`` is the whole
    configuration file for later stages: these three are no part of the hash.
    """

    stage: str
    network: NetworkSpec
    objective: Objective
    plan: Plan
    labels: dict[int, str]
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
            "labels": {str(value): name for value, name in self.labels.items()},
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
            return cls(
                stage=values["stage"],
                network=NetworkSpec.from_dict(values["network"]),
                objective=Objective.from_dict(values["objective"]),
                plan=Plan.from_dict(values["plan"]),
                labels={int(value): name for value, name in values["labels"].items()},
                channels=tuple(values["channels"]),
                training=values.get("training", {}),
                seed=values["seed"],
                cases=CaseNames(
                    dataset=values["cases"]["dataset"],
                    train=tuple(values["cases"]["train"]),
                    validation=tuple(values["cases"]["validation"]),
                    content=values["cases"]["content"],
                ),
                data=str(values["data"]),
                user_config=values["recipe"],
                pretrained_path=values.get("pretrained_path") or values.get("base"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInputError(f"config.yaml is not a run's: {type(error).__name__} {error}") from None
