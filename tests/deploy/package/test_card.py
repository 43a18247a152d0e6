"""The model card, word for word."""

from samkd.deploy.package.card import model_card
from samkd.deploy.runtime.judgement import (
    CandidateResult,
    ClassDrop,
    ConvertedScores,
    Gate,
    PromptedResult,
    ValidationScores,
)
from samkd.deploy.runtime.manifest import ClassEntry, Description, Manifest, PromptSupport
from samkd.volumes import Plan

LIVER = ConvertedScores(0.75, 2.5, 0.5, to_torch=ValidationScores(0.875, 1.0, 1.0))
SPLEEN = ConvertedScores(None, None, None, to_torch=ValidationScores(None, None, None))
SCORES = {"liver": LIVER, "spleen": SPLEEN}
MANIFEST = Manifest(
    samkd="0.1.0",
    name="student",
    target="openvino",
    model="model.xml",
    plan=Plan(intensity=({"rule": "zscore"},), patch=(16, 32, 32), spacing=(None, 1.5, 1.5)),
    classes={0: ClassEntry("background", (0, 0, 0)), 1: ClassEntry("liver", (9, 9, 9))},
    in_channels=1,
    precision="int8",
    inference_precision="f32",
    quantization="mixed",
    prompts=PromptSupport(frozenset({"point", "box"}), "decoder.xml", 16),
    provenance={"run": "distill-1", "objective": {"lambda": 1.0}},
    description=Description("phantom", "Generated.", ("CT",)),
    judged_on="openvino 1.2",
    versions={"numpy": "2.0", "torch": "2.1"},
    candidates=(
        CandidateResult("fp32", "f32", None, None, None, 1.0, SCORES, PromptedResult("box", 0.5, SCORES)),
        CandidateResult("int8", "f32", "mixed", "lost", 31.25, 0.5, SCORES, PromptedResult("point", 0.5, SCORES)),
        CandidateResult("int8", "f32", "plain", "not finite", None, None, {}, PromptedResult("point", 0.5, SCORES)),
    ),
    gate=Gate(0.005, per_class=True),
    scores=(
        ClassDrop("liver", 0.8, 0.75, 0.05, 2, None, None),
        ClassDrop("spleen", None, None, None, 0, None, None),
    ),
)
CARD = """# student

Segments liver, spleen in CT scans. Made by samkd 0.1.0.

**For research only. Not a medical device: its masks must not guide diagnosis or treatment.**

## Use

    python -m pip install -r requirements.txt
    python runtime.pyz verify
    python runtime.pyz predict scan.nii.gz -o mask.nii.gz

`verify` checks every file and that this machine reproduces the sample's mask. A mask lies on its scan's own grid. No \
GPU, PyTorch or network connection is needed.

## Scores

Dice on the validation scans, which also chose the weights, before conversion (torch) and with this package. The gate \
allowed a drop of 0.005 per class. A class without a case was not judged.

| class | torch | package | drop | cases |
|---|---|---|---|---|
| liver | 0.8000 | 0.7500 | 0.0500 | 2 |
| spleen | - | - | - | 0 |

Every candidate that was tried, judged on openvino 1.2: the probabilities' signal-to-noise ratio to the torch network, \
the share of voxels with the same class, and the means over the classes of Dice, HD95 and NSD (1 mm) against the truth.

| candidate | SNR (dB) | same class | Dice | HD95 (mm) | NSD | |
|---|---|---|---|---|---|---|
| fp32 | exact | 1.000000 | 0.7500 | 2.5000 | 0.5000 | passed |
| int8 (mixed) | 31.2 | 0.500000 | 0.7500 | 2.5000 | 0.5000 | refused |
| int8 (plain) | - | - | - | - | - | refused |

## Prompts

A user may point at what is meant (box, point; up to 16 points of a class in a patch): `predict --class NAME --point \
X,Y,Z`, or `prompt`, which encodes the scan once and then answers line by line. With one box of each class from the \
truth, Dice was: liver 0.7500.

## Data

phantom. Generated.

The scores come from scans of that dataset. Nothing is known about other scanners, protocols, ages or diseases: \
measure on your own labelled scans first.

## Model

- precision: int8, quantization: mixed; everything that is not int8 is computed in f32, whatever the CPU could do faster
- input: 1 channel(s), orientation SPL, spacing [None, 1.5, 1.5] mm, size None, patch [16, 32, 32], overlap 0.5
- run: distill-1
- made with numpy 2.0, torch 2.1

## Limits

- Every voxel gets one of the classes above, whatever the scan shows: a scan of another body part or another modality \
is segmented all the same, with a warning where its values or its modality are unlike the training data's.
- int8 was measured on one kind of CPU. Run `verify` on each machine it is used on.
- The sample is one scan of the dataset, voxels and geometry only. Whoever passes the package on passes it on.
"""


def test_the_card_says_what_the_manifest_holds():
    assert model_card(MANIFEST) == CARD
