"""nnU-Net's own trainer for a few minutes of CPU; found by nnU-Net through the variable nnUNet_extTrainer."""

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # pyright: ignore[reportMissingImports]


class BriefTrainer(nnUNetTrainer):
    """Epochs of 25 iterations, as many as BRIEF_EPOCHS says, on one thread, without the validation at the end."""

    def __init__(self, plans, configuration, fold, dataset_json, device):  # nnU-Net reads these names
        super().__init__(plans, configuration, fold, dataset_json, device)
        torch.set_num_threads(1)
        self.num_epochs = int(os.environ["BRIEF_EPOCHS"])
        self.num_iterations_per_epoch = 25
        self.num_val_iterations_per_epoch = 1

    def perform_actual_validation(self, save_probabilities: bool = False):
        """Nothing: the script predicts what it needs itself."""
