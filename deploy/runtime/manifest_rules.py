"""What the values of a manifest may be, each for itself and together: whoever resealed a package proved nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ...errors import IntegrityError
from ...volumes.intensity_profile import is_percentiles
from ...volumes.plan import BLENDINGS, CROPS, Plan
from ...volumes.prompts import KINDS
from ...volumes.temperature import HOTTEST

FORMAT = 1
SAMPLE = "sample/scan.nii.gz"
EXPECTED = "sample/expected.nii.gz"
# What computes what is not int8, by the engine and the precision of the weights.
INFERENCE = {
    "openvino": {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"},
    "onnx": {"fp32": "f32", "int8": "f32"},
    "tensorrt": {"fp32": "f32", "fp16": "f16", "int8": "f32"},
}
# Options of every intensity rule, in the order that the bounds of one are checked: (least, most).
_ANY = (-1e9, 1e9)
_INTENSITY: dict[str, dict[str, tuple[float, float]]] = {
    "window": {"low": _ANY, "high": _ANY},
    "clip": {"low": _ANY, "high": _ANY},
    "shift_scale": {"subtract": _ANY, "divide": _ANY},
    "percentile": {"low": (0, 100), "high": (0, 100)},
    "zscore": {},
}
_PLAN = ("orientation", "spacing", "size", "long_side", "intensity", "patch", "overlap", "blending", "crop")
_MOST_PATCH = 1 << 27  # voxels
_MOST_OVERLAP = 0.9
_OVERLAP = f"a number from 0 to {_MOST_OVERLAP}, or whole voxels from 2 to 4096"
_SHOWN = 60  # characters of a value in a message

Holds = Callable[[Any], object]


@dataclass(frozen=True)
class Rule:
    """`place` is the keys of a value, `*` for each item of an object or a list; a value that may be missing is not
    `required`.
    """

    place: str
    holds: Holds
    expected: str
    required: bool = True


def check_values(values: Any, *, source: Path) -> None:
    """Refuse a manifest whose values a package cannot have. Raises IntegrityError, naming `source`, the field, its
    value and what was expected.
    """
    for rule in _RULES:
        for place, value in _at(values, rule.place):
            if value is _MISSING and not rule.required:
                continue
            if value is _MISSING or not _true(rule.holds, value):
                raise IntegrityError(fault(source, place, value, rule.expected))
    for place, value, holds, expected in _together(values):
        if not holds:
            raise IntegrityError(fault(source, place, value, expected))


def fault(source: object, place: str, value: Any, expected: str) -> str:
    """The one line that says which value of a manifest is wrong; what cannot be printed in it is escaped."""
    if value is _MISSING:
        told = "is missing"
    else:
        text = json.dumps(value, default=str)
        told = f"is {text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'}"
    place = json.dumps(place)[1:-1][:_SHOWN]
    return f"{source}: its manifest does not describe a package: {place or 'it'} {told}; expected {expected}."


class _Missing:
    """What stands for a key that is not there."""


_MISSING = _Missing()


def _at(values: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every value at a place, with its own place; _MISSING where the last key is not there.

    Nothing where something before the last key is not there or has no keys: its own rule has judged that.
    """
    places = [("", values)]
    for key in place.split(".") if place else []:
        places = [
            (f"{above}.{name}" if above else name, value)
            for above, parent in places
            if parent is not _MISSING
            for name, value in _children(parent, key)
        ]
    yield from places


def _children(parent: Any, key: str) -> Iterator[tuple[str, Any]]:
    if key != "*":
        if isinstance(parent, dict):
            yield key, parent.get(key, _MISSING)
    elif isinstance(parent, dict):
        yield from parent.items()
    elif isinstance(parent, list):
        yield from ((str(index), value) for index, value in enumerate(parent))


def _true(holds: Holds, value: Any) -> bool:
    try:
        return bool(holds(value))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return False


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _whole(least: int, most: int) -> Holds:
    return lambda value: type(value) is int and least <= value <= most


def _number(least: float, most: float) -> Holds:
    return lambda value: type(value) in (int, float) and least <= value <= most


def _text(most: int = 200, *, least: int = 1) -> Holds:
    return lambda value: isinstance(value, str) and least <= len(value) <= most and value.isprintable()


def _or_null(holds: Holds) -> Holds:
    return lambda value: value is None or holds(value)


def _triple(holds: Holds) -> Holds:
    return lambda value: isinstance(value, list) and len(value) == 3 and all(map(holds, value))


def _patch(value: Any) -> bool:
    return bool(_triple(_whole(1, 4096))(value)) and prod(value) <= _MOST_PATCH


def _overlap(value: Any) -> bool:
    return bool(_number(0, _MOST_OVERLAP)(value) or (_number(2, 4096)(value) and value == int(value)))


def _orientation(value: Any) -> bool:
    return isinstance(value, str) and sorted("LRPAIS".index(letter) // 2 for letter in value) == [0, 1, 2]


def _plain_name(value: Any) -> bool:
    return bool(_text()(value)) and not re.search(r"[/\\]", value) and value not in (".", "..")


def _intensity_rule(value: Any) -> bool:
    options = {key: each for key, each in value.items() if key != "rule"}
    if value["rule"] == "zscore":
        return all(key == "nonzero" and type(each) is bool for key, each in options.items())
    bounds = _INTENSITY[value["rule"]]
    if value["rule"] == "percentile":
        options = {"low": 0.5, "high": 99.5, **options}
    if options.keys() != bounds.keys() or not all(_number(*bounds[key])(each) for key, each in options.items()):
        return False
    return options["divide"] != 0 if "divide" in options else options["low"] < options["high"]


def _class_values(value: Any) -> bool:
    return 2 <= len(value) <= 1000 and sorted(value) == sorted(map(str, range(len(value))))


_SCORE = _or_null(_number(-1, 1))
_RULES = (
    Rule("", _object, "an object"),
    Rule("format", _whole(FORMAT, FORMAT), str(FORMAT)),
    Rule("samkd", _text(), "the version that made it, up to 200 printable characters"),
    Rule("name", _text(255), "a name, up to 255 printable characters"),
    Rule("target", INFERENCE.__contains__, f"one of {', '.join(INFERENCE)}"),
    Rule("model", _plain_name, "the name of a file in the package's folder"),
    Rule("in_channels", _whole(1, 64), "a whole number from 1 to 64"),
    Rule("precision", lambda value: any(value in each for each in INFERENCE.values()), "fp32, fp16, bf16 or int8"),
    Rule("inference_precision", ("f32", "f16", "bf16").__contains__, "f32, f16 or bf16"),
    Rule("quantization", _or_null(_text()), "null, or up to 200 printable characters", required=False),
    Rule("plan", lambda value: _object(value) and set(value) <= set(_PLAN), f"an object with {', '.join(_PLAN)}"),
    Rule("plan.orientation", _orientation, "one letter each of L/R, P/A, I/S", required=False),
    Rule("plan.patch", _patch, f"three whole numbers of voxels (d, h, w), at most {_MOST_PATCH} voxels in all"),
    Rule(
        "plan.spacing",
        _or_null(_triple(_or_null(_number(1e-3, 1e3)))),
        "null, or three of null and a number of mm from 0.001 to 1000",
        required=False,
    ),
    Rule(
        "plan.size",
        _or_null(_triple(_or_null(_whole(1, 4096)))),
        "null, or three of null and a whole number of voxels from 1 to 4096",
        required=False,
    ),
    Rule("plan.long_side", _or_null(_whole(1, 4096)), "null, or a whole number from 1 to 4096", required=False),
    Rule("plan.overlap", _overlap, _OVERLAP, required=False),
    Rule("plan.blending", BLENDINGS.__contains__, f"one of {', '.join(BLENDINGS)}", required=False),
    Rule("plan.crop", CROPS.__contains__, f"one of {', '.join(CROPS)}", required=False),
    Rule("plan.intensity", lambda v: isinstance(v, list) and 1 <= len(v) <= 16, "a list of 1 to 16 intensity rules"),
    Rule(
        "plan.intensity.*",
        _intensity_rule,
        "a rule window, clip, shift_scale, percentile or zscore with numbers that can scale a scan: low below high, "
        "percentiles from 0 to 100, divide not 0",
    ),
    Rule("labels", _class_values, 'an object with "0" (the background), "1", ... for 2 to 1000 classes'),
    Rule("labels.*", _object, "an object with name and colour"),
    Rule("labels.*.name", _text(), "a name, up to 200 printable characters"),
    Rule("labels.*.colour", _triple(_whole(0, 255)), "three whole numbers from 0 to 255"),
    Rule("classes", _whole(2, 1000), "the number of classes", required=False),
    Rule("prompts", _object, "an object with kinds, decoder and points", required=False),
    Rule(
        "prompts.kinds",
        lambda value: isinstance(value, list) and value and set(value) <= KINDS and len(set(value)) == len(value),
        f"a list of {', '.join(sorted(KINDS))}",
    ),
    Rule("prompts.decoder", _plain_name, "the name of a file in the package's folder"),
    Rule("prompts.points", _whole(1, 1000), "a whole number from 1 to 1000"),
    Rule("small", _object, "an object with model, patch and overlap", required=False),
    Rule("small.model", _plain_name, "the name of a file in the package's folder"),
    Rule("small.patch", _patch, f"three whole numbers of voxels (d, h, w), at most {_MOST_PATCH} voxels in all"),
    Rule("small.overlap", _overlap, _OVERLAP),
    Rule("intensities", lambda value: isinstance(value, list), "a list of objects, one a channel", required=False),
    Rule("intensities.*", _object, "an object with percentiles and limit"),
    Rule("intensities.*.percentiles", is_percentiles, "9 numbers that do not fall"),
    Rule("intensities.*.limit", _number(0, 1e9), "a number that is not negative"),
    Rule("temperature", _number(1 / HOTTEST, HOTTEST), f"a number from {1 / HOTTEST} to {HOTTEST}", required=False),
    Rule("provenance", _object, "an object", required=False),
    Rule("provenance.run", _plain_name, "the name of a run folder, no path", required=False),
    Rule("provenance.recipe", _text(), "a config's name, up to 200 printable characters", required=False),
    Rule("description", _object, "an object", required=False),
    Rule("description.dataset", _text(least=0), "up to 200 printable characters", required=False),
    Rule("description.text", lambda v: isinstance(v, str) and len(v) <= 10000, "a text", required=False),
    Rule("description.channels", lambda v: isinstance(v, list), "a list of names", required=False),
    Rule("description.channels.*", _text(), "a name, up to 200 printable characters"),
    Rule("judged_on", _text(least=0), "up to 200 printable characters", required=False),
    Rule("processor", _text(40), "a class of processors, up to 40 printable characters", required=False),
    Rule("versions", _object, "an object", required=False),
    Rule("versions.*", _text(), "a version, up to 200 printable characters"),
    Rule("ladder", lambda value: isinstance(value, list), "a list of objects", required=False),
    Rule("ladder.*", _object, "an object"),
    Rule("geometries", lambda value: isinstance(value, list), "a list of objects", required=False),
    Rule("geometries.*", _object, "an object with patch, overlap and work"),
    Rule("gate", _object, "an object with max_drop and per_class", required=False),
    Rule("gate.max_drop", _number(0, 1), "a number from 0 to 1"),
    Rule("gate.per_class", lambda value: value is None or type(value) is bool, "true or false"),
    Rule("scores", _object, "an object with max_drop and per_class"),
    Rule("scores.max_drop", _number(0, 1), "a number from 0 to 1"),
    Rule("scores.per_class", _object, "an object with a row for each class"),
    Rule("scores.per_class.*", _object, "an object with cases, torch, package and drop"),
    Rule("scores.per_class.*.cases", _whole(0, 10**9), "a whole number"),
    Rule("scores.per_class.*.torch", _SCORE, "a number up to 1, or null"),
    Rule("scores.per_class.*.package", _SCORE, "a number up to 1, or null"),
    Rule("scores.per_class.*.drop", _SCORE, "a number up to 1, or null"),
    Rule("signer", lambda value: re.fullmatch(r"[0-9a-f]{64}", value), "an ed25519 key in hexadecimal", required=False),
    Rule("files", _object, "an object with bytes and sha256 of every file"),
)


def _together(values: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool, str]]:
    """(place, value, whether it fits, what was expected) of the values that others decide; each is sound by itself."""
    labels, files, plan = values["labels"], values["files"], values["plan"]
    channels, prompts = values["in_channels"], values.get("prompts")
    if "classes" in values:
        count = values["classes"]
        yield "classes", count, count == len(labels), f"{len(labels)}, the number of labels"
    names = [entry["name"] for entry in labels.values()]
    twice = {name for name in names if names.count(name) > 1}
    yield "labels", min(twice, default=None), not twice, "another name for each class"
    for place, value in _at(values, "scores.per_class.*"):
        name = place.removeprefix("scores.per_class.")
        yield place, name, name in names, "a row for a class of labels only"
        scored = not value["cases"] or (value["torch"] is not None and value["package"] is not None)
        yield place, value["cases"], scored, "torch and package to be numbers where there are cases"
    known = INFERENCE[values["target"]]
    precision, inference = values["precision"], values["inference_precision"]
    yield "precision", precision, precision in known, f"one of {', '.join(known)} for the target {values['target']}"
    yield "inference_precision", inference, inference == known[precision], f"{known[precision]} for {precision}"
    for place in ("intensities", "description.channels"):
        for _, value in _at(values, place):
            fits = value is _MISSING or len(value) in (0, channels)
            yield place, None if fits else len(value), fits, f"none or {channels}, one for each of in_channels"
    suffix, model = ".xml" if values["target"] == "openvino" else ".onnx", values["model"]
    yield "model", model, model.endswith(suffix), f"a file *{suffix} for the target {values['target']}"
    small = values.get("small")
    needed = [SAMPLE, EXPECTED, model, *([prompts["decoder"]] if prompts else []), *([small["model"]] if small else [])]
    needed += [f"{name.removesuffix('.xml')}.bin" for name in needed if name.endswith(".xml")]
    for name in needed:
        yield f"files.{name}", _MISSING, name in files, "a file that the package needs"
    if prompts:
        decoder = prompts["decoder"]
        yield (
            "prompts.decoder",
            decoder,
            decoder != model and decoder.endswith(suffix),
            f"a file *{suffix} other than model",
        )
    if small:
        name = small["model"]
        yield "small.model", name, name != model and name.endswith(suffix), f"a file *{suffix} other than model"
        yield "small", small, not prompts, "none in a package that takes prompts"
    if "plan_digest" in values:
        digest = Plan.from_dict(plan).digest()
        yield "plan_digest", values["plan_digest"], values["plan_digest"] == digest, f"{digest}, the plan's sha256"
