"""configs/metadata.json, where tools that read MONAI bundles look for what a model expects and gives."""

from __future__ import annotations

import importlib.metadata as metadata
from typing import Any

from ..runtime.manifest import Manifest

METADATA = "configs/metadata.json"


def bundle_metadata(manifest: Manifest) -> dict[str, Any]:
    """The metadata of MONAI's bundle specification, from a manifest. The graph itself is no MONAI config: a bundle's
    `configs/inference.json` is left to runtime.pyz, which carries the plan's pre- and post-processing."""
    about = manifest.description
    channels = about.channels or [str(index) for index in range(manifest.in_channels)]
    classes = {str(value): name for value, name in manifest.class_names.items()}
    shape = {"spatial_shape": list(manifest.plan.patch), "dtype": "float32", "is_patch_data": True}
    return {
        "version": manifest.samkd,
        "name": manifest.name,
        "monai_version": metadata.version("monai"),
        "pytorch_version": manifest.versions["torch"],
        "numpy_version": manifest.versions["numpy"],
        "required_packages_version": {
            name: version for name, version in manifest.versions.items() if name not in ("numpy", "torch")
        },
        "task": f"Segmentation of {', '.join(name for value, name in classes.items() if value != '0')}",
        "description": about.text,
        "intended_use": "Research only; not a medical device.",
        "data_source": about.dataset,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "n/a",
                    "num_channels": manifest.in_channels,
                    "value_range": [],
                    "channel_def": {str(index): name for index, name in enumerate(channels)},
                    **shape,
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "segmentation",
                    "num_channels": len(classes),
                    "value_range": [0, 1],
                    "channel_def": classes,
                    **shape,
                }
            },
        },
        "eval_metrics": {"dice": {drop.name: drop.converted for drop in manifest.scores if drop.cases}},
    }
