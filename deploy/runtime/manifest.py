"""The manifest of a package as a record: what is in it, what it expects, how good it was, and every file's checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import BadInputError, IntegrityError
from ...volumes.plan import Plan
from .judgement import (
    CandidateResult,
    ClassDrop,
    Gate,
    GeometryResult,
    optional_text,
    read_candidate,
    read_class_drop,
    read_gate,
    read_geometry_result,
    score_row,
)
from .manifest_rules import FORMAT, check_values

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """The size of a file in bytes, and its sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ClassEntry:
    """The name of a class, and the colour (red, green, blue; 0 to 255) it is shown in."""

    name: str
    colour: tuple[int, ...]


@dataclass(frozen=True)
class PromptSupport:
    """What a promptable package takes: its prompt kinds, the file of its decoder, and points of a class in a patch.

    With `required` it finds nothing but what a prompt shows, one point or one box of a class in a patch.
    """

    kinds: frozenset[str]
    decoder: str
    points: int
    required: bool = False


@dataclass(frozen=True)
class SmallGraph:
    """A second graph of the same network, for smaller patches (D, H, W): its file, and how far its patches overlap."""

    model: str
    patch: tuple[int, int, int]
    overlap: float


@dataclass(frozen=True)
class Description:
    """The dataset by name, a text about it, and the names of a scan's channels."""

    dataset: str = ""
    text: str = ""
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds.

    `model` is the file the engine of `target` opens, `inference_precision` the arithmetic it computes in. `intensities`
    is what volumes.intensity_profile gave for the training data, channel by channel. `small` is for
    scans that it computes fewer voxels for, and for those that memory is short for. `temperature` scales the
    probabilities that the package gives away (1 where none was fitted). `provenance` is plain JSON. The
    fields from `judged_on` on are known once a candidate was accepted, `files` and `digest` once all files are written.
    """

    samkd: str
    name: str
    target: str
    model: str
    plan: Plan
    classes: Mapping[int, ClassEntry]
    in_channels: int
    precision: str
    inference_precision: str
    quantization: str | None = None
    prompts: PromptSupport | None = None
    small: SmallGraph | None = None
    intensities: tuple[Mapping[str, Any], ...] = ()
    temperature: float = 1.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    description: Description = Description()
    judged_on: str = ""
    processor: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    candidates: tuple[CandidateResult, ...] = ()
    geometries: tuple[GeometryResult, ...] = ()
    gate: Gate | None = None
    scores: tuple[ClassDrop, ...] = ()
    signer: str | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    digest: str = ""

    @property
    def class_names(self) -> dict[int, str]:
        """The names of the classes by their value in a mask, background 0 included."""
        return {value: entry.name for value, entry in self.classes.items()}

    @classmethod
    def read(cls, package: Path) -> Manifest:
        """The manifest of a package folder, whose files are not checked. Raises BadInputError, IntegrityError."""
        try:
            values = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInputError(f"{package}: is no package, it holds no {MANIFEST} ({error.strerror}).") from error
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{package}: its {MANIFEST} is damaged ({error}). Copy the package again.") from error
        return cls.from_json(values, source=package)

    @classmethod
    def from_json(cls, values: Any, *, source: Path) -> Manifest:
        """The record of a manifest's JSON values; what older packages lack is empty.

        Raises IntegrityError, naming `source`, for values that describe no package.
        """
        check_values(values, source=source)
        try:
            return _record(values)
        except (BadInputError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise IntegrityError(f"{source}: its manifest does not describe a package ({error!r}).") from error

    def to_json(self) -> dict[str, Any]:
        """The JSON values of manifest.json; fields that are not known yet are left out."""
        values: dict[str, Any] = {
            "format": FORMAT,
            "samkd": self.samkd,
            "name": self.name,
            "target": self.target,
            "model": self.model,
            "plan": self.plan.to_dict(),
            "plan_digest": self.plan.digest(),
            "labels": {
                str(value): {"name": entry.name, "colour": [*entry.colour]} for value, entry in self.classes.items()
            },
            "classes": len(self.classes),
            "in_channels": self.in_channels,
            "precision": self.precision,
            "inference_precision": self.inference_precision,
            "quantization": self.quantization,
            "intensities": [dict(each) for each in self.intensities],
            "provenance": dict(self.provenance),
            "description": {**asdict(self.description), "channels": [*self.description.channels]},
            "judged_on": self.judged_on,
            "versions": dict(self.versions),
            "ladder": [_candidate(each) for each in self.candidates],
            "files": {name: asdict(entry) for name, entry in self.files.items()},
        }
        if self.prompts is not None:
            values["prompts"] = {**asdict(self.prompts), "kinds": sorted(self.prompts.kinds)}
        if self.small is not None:
            values["small"] = {**asdict(self.small), "patch": [*self.small.patch]}
        if self.temperature != 1.0:
            values["temperature"] = self.temperature
        if self.geometries:
            values["geometries"] = [asdict(each) for each in self.geometries]
        if self.processor is not None:
            values["processor"] = self.processor
        if self.gate is not None:
            values["gate"] = asdict(self.gate)
            values["scores"] = {"max_drop": self.gate.max_drop, "per_class": dict(map(score_row, self.scores))}
        if self.signer is not None:
            values["signer"] = self.signer
        if self.digest:
            values["digest"] = self.digest
        return values


def _record(values: Mapping[str, Any]) -> Manifest:
    return Manifest(
        samkd=str(values["samkd"]),
        name=str(values["name"]),
        target=str(values["target"]),
        model=str(values["model"]),
        plan=Plan.from_dict(values["plan"]),
        classes={
            int(value): ClassEntry(str(entry["name"]), tuple(map(int, entry["colour"])))
            for value, entry in values["labels"].items()
        },
        in_channels=int(values["in_channels"]),
        precision=str(values["precision"]),
        inference_precision=str(values["inference_precision"]),
        quantization=optional_text(values.get("quantization")),
        prompts=_prompts(values.get("prompts")),
        small=_small(values.get("small")),
        intensities=tuple(dict(each) for each in values.get("intensities", ())),
        temperature=float(values.get("temperature", 1.0)),
        provenance=dict(values.get("provenance", {})),
        description=_description(values.get("description", {})),
        judged_on=str(values.get("judged_on", "")),
        processor=optional_text(values.get("processor")),
        versions={str(name): str(version) for name, version in values.get("versions", {}).items()},
        candidates=tuple(map(read_candidate, values.get("ladder", ()))),
        geometries=tuple(map(read_geometry_result, values.get("geometries", ()))),
        gate=read_gate(values),
        scores=tuple(read_class_drop(name, row) for name, row in values.get("scores", {}).get("per_class", {}).items()),
        signer=optional_text(values.get("signer")),
        files={
            str(name): FileEntry(entry["bytes"], entry["sha256"]) for name, entry in values.get("files", {}).items()
        },
        digest=str(values.get("digest", "")),
    )


def _candidate(result: CandidateResult) -> dict[str, Any]:
    values = {"title": result.title, **asdict(result)}
    if result.cpu_seconds is None:
        del values["cpu_seconds"]
    return values


def _prompts(values: Any) -> PromptSupport | None:
    if values is None:
        return None
    return PromptSupport(
        kinds=frozenset(map(str, values["kinds"])),
        decoder=str(values["decoder"]),
        points=int(values["points"]),
        required=bool(values.get("required", False)),
    )


def _small(values: Any) -> SmallGraph | None:
    if values is None:
        return None
    d, h, w = map(int, values["patch"])
    return SmallGraph(str(values["model"]), (d, h, w), float(values["overlap"]))


def _description(values: Mapping[str, Any]) -> Description:
    return Description(
        dataset=str(values.get("dataset", "")),
        text=str(values.get("text", "")),
        channels=tuple(map(str, values.get("channels", ()))),
    )
