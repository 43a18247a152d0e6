"""nnU-Net v2's own prediction beside ours: its default network at a run's plan, with random weights."""

import argparse
import json
import subprocess
from pathlib import Path

from measured_rows import Row

from samkd.training.run import Run

_FEATURES = (32, 64, 128, 256, 320, 320)  # of nnU-Net's stages, until a side of the patch would fall below 4


def nnunet_command(options: argparse.Namespace, scan: Path, masks: Path) -> tuple[list[str], Path]:
    """The command of its prediction, in its own environment, and the folder that it writes the mask to."""
    folder = options.out / "nnunet"
    if not (folder / "fold_all" / "checkpoint_final.pth").exists():
        (folder / "fold_all").mkdir(parents=True, exist_ok=True)
        plans, dataset = nnunet_plans(Run.read(options.run))
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset))
        code = f"""
import json, torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
plans = json.load(open({str(folder / "plans.json")!r}))
of = plans["configurations"]["3d_fullres"]["architecture"]
network = get_network_from_plans(of["network_class_name"], of["arch_kwargs"], of["_kw_requires_import"], 1,
                                 {len(dataset["labels"])}, allow_init=True, deep_supervision=False)
print(sum(each.numel() for each in network.parameters()) / 1e6, "million parameters")
torch.save({{"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer",
             "init_args": {{"configuration": "3d_fullres"}}, "inference_allowed_mirroring_axes": None}},
           {str(folder / "fold_all" / "checkpoint_final.pth")!r})
"""
        subprocess.run([options.nnunet / "bin" / "python", "-c", code], check=True)
    scans, predictions = masks / "nnunet-scans", masks / "nnunet-masks"
    scans.mkdir(exist_ok=True)
    link = scans / "scan_0000.nii.gz"
    if not link.exists():
        link.symlink_to(scan.resolve())
    code = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as run; run()"
    command = [str(options.nnunet / "bin" / "python"), "-c", code, "-i", str(scans), "-o", str(predictions)]
    command += ["-m", str(folder), "-f", "all", "--disable_tta", "-device", "cpu", "-npp", "1"]
    command += ["-nps", "1", "--disable_progress_bar"]
    threads = ["env", f"OMP_NUM_THREADS={options.threads}"]
    return [*threads, *command], predictions


def nnunet_plans(run: Run) -> tuple[Row, Row]:
    """plans.json and dataset.json: what nnU-Net's planner writes for CT with this patch and spacing."""
    patch, spacing = list(run.plan.patch), [float(side or 1) for side in run.plan.spacing or (1, 1, 1)]
    halvings = next(n for n in range(len(_FEATURES)) if min(patch) >> n < 8 or n == len(_FEATURES) - 1)
    stages = halvings + 1
    resampling = {"order": 1, "order_z": 0, "force_separate_z": None}
    network = {
        "n_stages": stages,
        "features_per_stage": list(_FEATURES[:stages]),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *([[2, 2, 2]] * halvings)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * halvings,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [128.0, 224.0, 224.0],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, **resampling, "order": 3},
        "resampling_fn_seg_kwargs": {"is_seg": True, **resampling},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **resampling},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    values = {"max": 3071.0, "mean": 60.0, "median": 60.0, "min": -1024.0, "std": 80.0}
    plans = {
        "dataset_name": "Dataset900_Phantom",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": [128, 224, 224],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {**values, "percentile_00_5": -200.0, "percentile_99_5": 250.0}
        },
    }
    labels = {name: value for value, name in run.class_names.items()}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    return plans, dataset
