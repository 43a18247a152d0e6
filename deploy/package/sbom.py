"""The software bill of materials of a package: everything the device installs to run it (CycloneDX 1.6)."""

import importlib.metadata as metadata
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def bill_of_materials(name: str, *, samkd: str, model: Mapping[str, str], libraries: Sequence[str]) -> dict[str, Any]:
    """CycloneDX 1.6 document; `model` gives the sha256 of each model file. What the libraries need is included."""
    libraries = [distribution(each) for each in libraries]
    versions = {each: metadata.version(each) for each in _closure(libraries)}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": name, "name": name, "version": samkd}},
        "components": [
            {
                "type": "library",
                "bom-ref": "samkd",
                "name": "samkd",
                "version": samkd,
                "licenses": [{"expression": "Apache-2.0"}],
            },
            *(
                {
                    "type": "machine-learning-model",
                    "bom-ref": file,
                    "name": file,
                    "hashes": [{"alg": "SHA-256", "content": checksum}],
                }
                for file, checksum in model.items()
            ),
            *(
                {
                    "type": "library",
                    "bom-ref": f"pkg:pypi/{each}@{version}",
                    "name": each,
                    "version": version,
                    "purl": f"pkg:pypi/{each}@{version}",
                    "licenses": [_licence(each)],
                }
                for each, version in versions.items()
            ),
        ],
        "dependencies": [
            {"ref": name, "dependsOn": ["samkd", *model]},
            {"ref": "samkd", "dependsOn": [f"pkg:pypi/{each}@{versions[each]}" for each in libraries]},
            *(
                {
                    "ref": f"pkg:pypi/{each}@{version}",
                    "dependsOn": [f"pkg:pypi/{need}@{versions[need]}" for need in _needs(each)],
                }
                for each, version in versions.items()
            ),
        ],
    }


def distribution(library: str) -> str:
    """The installed distribution that holds a library: its own name, or another build's (onnxruntime-gpu)."""
    try:
        metadata.version(library)
    except metadata.PackageNotFoundError:
        return metadata.packages_distributions().get(library, [library])[0]
    return library


def _closure(names: Sequence[str]) -> list[str]:
    closure = list(names)
    for name in closure:
        closure += [need for need in _needs(name) if need not in closure]
    return closure


def _needs(name: str) -> list[str]:
    parsed = [Requirement(line) for line in metadata.requires(name) or ()]
    return [canonicalize_name(r.name) for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def _licence(name: str) -> dict[str, Any]:
    fields = metadata.metadata(name).json
    if "license_expression" in fields:
        return {"expression": fields["license_expression"]}
    return {"license": {"name": fields.get("license", "not stated")}}
