"""What a training run is: the description that ``trainer.run_job`` executes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..configs.schema import Config, PromptTraining, Training
from ..volumes.datasets.registry import Case
from ..volumes.plan import Plan
from .prepared import PreparedCase
from .prompt_sampling import PromptSampler
from .run_config import NetworkSpec, Objective, RunConfig
from .split import DataSplit
from .step import TrainingStep

AddSoftTargets = Callable[[Sequence[Case], Sequence[PreparedCase]], list[PreparedCase]]


def keep_all(network: nn.Module) -> None:
    """The network trains as it was built."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One run, said in full before anything is computed.

    ``network``, ``plan``, ``split``, ``settings``, ``prompts`` and ``objective`` decide its result and are recorded in
    its folder. ``build`` makes the network, with random weights; ``pretrained`` fills it from a published checkpoint;
    ``initialise`` then freezes parts of it or fills it from another run. ``make_step`` gives what a step computes.
    ``add_soft_targets`` gives prepared training cases their soft targets on this plan's grid; ``unlabelled`` cases
    join every batch.
    """

    stage: str
    config: Config
    network: NetworkSpec
    plan: Plan
    split: DataSplit
    settings: Training
    prompts: PromptTraining
    objective: Objective
    title: str
    build: Callable[[], Any]
    make_step: Callable[[Any, PromptSampler | None], TrainingStep]
    initialise: Callable[[Any], None] = keep_all
    pretrained: Path | None = None
    add_soft_targets: AddSoftTargets | None = None
    unlabelled: tuple[Case, ...] = ()

    def run_config(self) -> RunConfig:
        """The record that the run folder keeps. Raises BadInputError when one scan is in two parts of the split."""
        dataset = self.split.dataset
        return RunConfig(
            stage=self.stage,
            network=self.network,
            objective=self.objective,
            plan=self.plan,
            class_names=dict(dataset.labels),
            channels=tuple(dataset.channels),
            training=self.settings.model_dump(mode="json"),
            seed=self.config.seed,
            cases=self.split.describe(),
            data=str(dataset.root.resolve()),
            user_config=self.config.model_dump(mode="json", by_alias=True),
            pretrained_path=str(self.pretrained.resolve()) if self.pretrained else None,
        )

    def folder_name(self, config: RunConfig) -> str:
        """The default name of the run's folder: stage, config, network and the first of the hash."""
        return f"{self.stage}-{self.config.name}-{self.network.name}-{config.digest()[:8]}"
