"""A run's record with small values, for tests that need a run folder and no more."""

from typing import Any

from samkd.training.run_config import RunConfig


def run_values(**changes: Any) -> dict[str, Any]:
    """The values of a config.yaml of format 1, as runs were written before it had a number."""
    values = {
        "stage": "teach",
        "network": {
            "room": "teachers",
            "name": "masam",
            "backbone": "vit_tiny_p8",
            "in_channels": 1,
            "num_classes": 2,
            "patch": [4, 8, 8],
            "options": {},
        },
        "objective": {"lambda": 1.0, "pretrained": None},
        "plan": {"intensity": [{"rule": "zscore"}], "patch": [4, 8, 8]},
        "labels": {"0": "background", "1": "liver"},
        "channels": ["CT"],
        "cases": {"dataset": "phantom", "train": ["a"], "validation": ["b"], "content": "0"},
        "seed": 0,
        "training": {"steps": 3},
        "data": "/somewhere",
        "recipe": {"name": "phantom"},
    }
    return values | changes


def run_config(**changes: Any) -> RunConfig:
    """The record of these values; the network has as many classes and channels as they name."""
    values = run_values(**changes)
    if "network" not in changes:
        values["network"] |= {"num_classes": len(values["labels"]), "in_channels": len(values["channels"])}
    return RunConfig.from_dict(values)
