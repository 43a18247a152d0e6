"""The model card of a package (Mitchell et al. 2019): what it is, how good it was, what it must not be used for."""

from collections.abc import Sequence

from ..runtime.judgement import CandidateResult, ConvertedScores, accepted, timed_precisions
from ..runtime.manifest import Manifest

_USE = """## Use

    python -m pip install -r requirements.txt
    python runtime.pyz verify
    python runtime.pyz predict scan.nii.gz -o mask.nii.gz

`verify` checks every file and that this machine reproduces the sample's mask. A mask lies on its scan's own grid. No \
GPU, PyTorch or network connection is needed.
"""
_LIMITS = """## Limits

- Every voxel gets one of the classes above, whatever the scan shows: a scan of another body part or another modality \
is segmented all the same, with a warning where its values or its modality are unlike the training data's.
- int8 was measured on one kind of CPU. Run `verify` on each machine it is used on.
- The sample is one scan of the dataset, voxels and geometry only. Whoever passes the package on passes it on.
"""


def model_card(manifest: Manifest) -> str:
    """Markdown from a manifest; every number in it is one of the manifest's."""
    sections = [
        _title(manifest),
        _USE,
        _scores(manifest),
        _candidates(manifest),
        _geometries(manifest),
        _temperature(manifest),
        _prompts(manifest),
        _data(manifest),
        _model(manifest),
        _LIMITS,
    ]
    return "\n".join(section for section in sections if section)


def _title(manifest: Manifest) -> str:
    classes, channels = (drop.name for drop in manifest.scores), manifest.description.channels
    return f"""# {manifest.name}

Segments {", ".join(classes)} in {", ".join(channels) or "a scan"} scans. Made by samkd {manifest.samkd}.

**For research only. Not a medical device: its masks must not guide diagnosis or treatment.**
"""


def _scores(manifest: Manifest) -> str:
    rows = [
        f"| {drop.name} | {_number(drop.torch)} | {_number(drop.converted)} | {_number(drop.drop)} | {drop.cases} |\n"
        for drop in manifest.scores
    ]
    return f"""## Scores

Dice on the validation scans, which also chose the weights, before conversion (torch) and with this package. \
{_gate(manifest)}

| class | torch | package | drop | cases |
|---|---|---|---|---|
{"".join(rows)}"""


def _gate(manifest: Manifest) -> str:
    """What the gate judged, in a sentence or two."""
    gate = manifest.gate
    if gate is None:
        return "No gate has judged it."
    if gate.per_class:
        return f"The gate allowed a drop of {gate.max_drop:g} per class. A class without a case was not judged."
    return (
        f"The gate allowed a drop of {gate.max_drop:g} in the mean over the classes with a case. "
        "No class was judged by itself."
    )


def _candidates(manifest: Manifest) -> str:
    return f"""Every candidate that was tried, judged on {manifest.judged_on}: the probabilities' signal-to-noise \
ratio to the torch network, the share of voxels with the same class, and the means over the classes of Dice, HD95 \
and NSD (1 mm) against the truth.

| candidate | SNR (dB) | same class | Dice | HD95 (mm) | NSD | |
|---|---|---|---|---|---|---|
{"".join(map(_candidate_row, manifest.candidates))}{_processor(manifest)}"""


def _processor(manifest: Manifest) -> str:
    """The class of processors that the precision was chosen for; empty where it was not."""
    if manifest.processor is None:
        return ""
    return f"\nChosen for processors of the class {manifest.processor}. {timed_precisions(manifest.candidates)}\n"


def _candidate_row(result: CandidateResult) -> str:
    scored = [row for row in result.per_class.values() if row.dice is not None]
    dice, hd95, nsd = (_number(_mean(scored, key)) for key in ("dice", "hd95_mm", "nsd"))
    snr = "exact" if result.snr_db is None and scored else _number(result.snr_db, 1)
    verdict = "passed" if result.refusal is None else "refused"
    return f"| {result.title} | {snr} | {_number(result.agreement, 6)} | {dice} | {hd95} | {nsd} | {verdict} |\n"


def _geometries(manifest: Manifest) -> str:
    """What other patches and overlaps did; empty where none was tried."""
    rows = [
        f"| {' x '.join(map(str, each.patch))} | {each.overlap_text} | {each.work:.2f} | {_number(each.dice)} | "
        f"{_number(each.hd95_mm)} | {_number(each.cpu_seconds, 2)} | {'refused' if each.refusal else 'passed'} |\n"
        for each in manifest.geometries
    ]
    if not rows:
        return ""
    precisions = timed_precisions(manifest.candidates)
    return f"""## Patches

The patches that were tried on the validation scans, the training's first; the last that passed is packed. Means over \
the classes, and seconds of the processor a scan on the machine that judged.

| patch | overlap | voxels computed for each | Dice | HD95 (mm) | CPU seconds | |
|---|---|---|---|---|---|---|
{"".join(rows)}
{precisions}
"""


def _temperature(manifest: Manifest) -> str:
    """By what the probabilities are scaled; empty where nothing was fitted."""
    if manifest.temperature == 1.0:
        return ""
    return f"""## Probabilities

The logits behind the probabilities that the package gives to programs are divided by {manifest.temperature:.3f}, the \
temperature that the validation scans say (Guo et al. 2017). Masks are made without it.
"""


def _prompts(manifest: Manifest) -> str:
    """What a user may show the network, and its Dice then; empty for a network without prompts."""
    prompts = manifest.prompts
    prompted = None if prompts is None else accepted(manifest.candidates).prompted
    if prompts is None or prompted is None:
        return ""
    option = "--point X,Y,Z" if "point" in prompts.kinds else "--box X0,Y0,Z0,X1,Y1,Z1"
    scores = [f"{name} {_number(row.dice)}" for name, row in prompted.per_class.items() if row.dice is not None]
    return f"""## Prompts

A user may point at what is meant ({", ".join(sorted(prompts.kinds))}; up to {prompts.points} points of a class in a \
patch): `predict --class NAME {option}`, or `prompt`, which encodes the scan once and then answers line by line. With \
one {prompted.kind} of each class from the truth, Dice was: {", ".join(scores)}.
"""


def _data(manifest: Manifest) -> str:
    about = manifest.description
    dataset = f"{about.dataset or 'Not named'}. {about.text}".strip()
    return f"""## Data

{dataset}

The scores come from scans of that dataset. Nothing is known about other scanners, protocols, ages or diseases: \
measure on your own labelled scans first.
"""


def _model(manifest: Manifest) -> str:
    plan = manifest.plan
    quantization = f", quantization: {manifest.quantization}" if manifest.quantization else ""
    provenance = [f"- {key}: {value}\n" for key, value in manifest.provenance.items() if isinstance(value, str)]
    versions = [f"{name} {version}" for name, version in manifest.versions.items()]
    return f"""## Model

- precision: {manifest.precision}{quantization}; everything that is not int8 is computed in \
{manifest.inference_precision}, whatever the CPU could do faster
- input: {manifest.in_channels} channel(s), orientation {plan.orientation}, spacing {_triple(plan.spacing)} mm, \
size {_triple(plan.size)}, patch {_triple(plan.patch)}, overlap {plan.overlap}
{"".join(provenance)}- made with {", ".join(versions)}
"""


def _mean(rows: Sequence[ConvertedScores], key: str) -> float | None:
    return sum(getattr(row, key) for row in rows) / len(rows) if rows else None


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _triple(values: Sequence[float | None] | None) -> str:
    """Three numbers for d, h and w in brackets; "None" without them."""
    return str(values and [*values])
