"""Teacher targets: the teachers' class probabilities for whole scans, on the student's grid, cached on disk."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import BadInputError, UsageError, about
from ..training.prepared import PreparedCase, fingerprint
from ..training.progress import Bar
from ..training.prompt_sampling import prompts_from_truth
from ..training.ranks import barrier, is_main, of_main, share_of
from ..training.run_config import digest
from ..training.validation import PooledDice
from ..volumes.datasets.registry import Case, Dataset, read_case, read_labelled_case
from ..volumes.files import atomic_path, make_folder, write_json
from ..volumes.geometry import Volume
from ..volumes.json_files import read_json
from ..volumes.plan import Plan, grid, slice_axis
from ..volumes.preprocess import preprocess_labels
from ..volumes.prompts import ScanPrompts
from .case_prompts import (
    case_prompts,
    prompted_cases,
    prompted_probabilities,
    require_mask_or_prompts,
    require_takers,
)
from .ensemble import Ensemble, Member
from .target_cache import TargetFile, chunk_of, encode, quantise


def target_folder(cache: Path, ensemble: Ensemble, plan: Plan) -> Path:
    """Keyed by the teachers' weights and plans and the student's plan; its files by the bytes of the scans."""
    return make_folder(cache / "targets" / f"{ensemble.key[:16]}-{plan.digest()[:16]}")


def cached_targets(
    ensemble: Ensemble,
    cases: Sequence[Case],
    prepared: Sequence[PreparedCase],
    dataset: Dataset,
    *,
    plan: Plan,
    cache: Path,
    limit: float,
) -> list[PreparedCase]:
    """The prepared cases with their targets on the student's grid; those that the cache lacks are written.

    A teacher that finds nothing without prompts is shown a box on every slice, from the case's mask, and its targets
    are keyed by the mask, too. Teachers that take prompts are shown those that a case has in place of a mask
    (distill.case_prompts), and its targets are keyed by these. Before each file is written, the size of all is
    predicted from those so far. Of several devices each writes its share. Raises UsageError when it exceeds ``limit``
    bytes, IntegrityError for a damaged file, BadInputError for a case without a mask and without prompts where a
    teacher needs one of them, and for prompts that the teachers cannot be shown; UsageError for prompts where no
    teacher takes any.
    """
    folder = target_folder(cache, ensemble, plan)
    if ensemble.prompts_required:
        require_mask_or_prompts(cases)
    require_takers(ensemble, prompted_cases(cases))
    own_prompts = [case_prompts(case, dataset) for case in cases]
    names = [_target_name(ensemble, case, prompts) for case, prompts in zip(cases, own_prompts, strict=True)]
    paths = [folder / f"{name}.targets" for name in names]
    voxels = [int(np.prod(case.shape)) for case in prepared]
    done = of_main([index for index, path in enumerate(paths) if path.exists()])
    written, covered = sum(paths[index].stat().st_size for index in done), sum(voxels[index] for index in done)
    missing = share_of([index for index in range(len(cases)) if index not in done])
    with Bar("teacher targets", len(done) + len(missing), done=len(done)) as bar:
        for index in missing:
            case, prompts, path, size = cases[index], own_prompts[index], paths[index], voxels[index]
            volume, mask = read_case(case, dataset)
            onto = grid(plan, volume.geometry)
            if prompts is None:
                probabilities = ensemble.probabilities(
                    volume, onto, _prompts(ensemble, volume, mask, dataset), case=case.name
                )
            else:
                with about(case.prompts):
                    probabilities = prompted_probabilities(ensemble, volume, onto, prompts, case=case.name)
            content = encode(quantise(probabilities), chunk_of(plan.patch), owner=_owner(path))
            written, covered = written + len(content), covered + size
            _check_size(written / covered * sum(voxels), limit, folder, len(cases))
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            bar.advance(case.name)
    barrier()
    classes = len(dataset.labels)
    return [
        case.with_soft_targets(TargetFile.open(path, owner=_owner(path), shape=(classes, *case.shape)))
        for case, path in zip(prepared, paths, strict=True)
    ]


def _target_name(ensemble: Ensemble, case: Case, prompts: ScanPrompts | None) -> str:
    """What a case's targets depend on besides teachers and plan: its scan, and what is shown with it."""
    if prompts is None:
        return fingerprint(replace(case, prompts=None, label=case.label if ensemble.prompts_required else None))[:32]
    classes = {value: [shown.points, shown.boxes] for value, shown in sorted(prompts.classes.items())}
    return (
        f"{fingerprint(replace(case, prompts=None))[:32]}-{digest({'space': prompts.space, 'classes': classes})[:16]}"
    )


def _owner(path: Path) -> str:
    """Whose targets a file holds: the key of teachers and plan, and that of the scan, as its path says them."""
    return f"{path.parent.name}/{path.stem}"


def validation_dice(
    ensemble: Ensemble, cases: Sequence[Case], dataset: Dataset, *, plan: Plan, cache: Path
) -> dict[str, dict[str, float]]:
    """How well each teacher, and their mean, segments the student's validation cases, by name: the Dice that the
    student is steered by (pooled over cases, on the student's grid). Measured once per set of teachers and cases. A
    folder that has not all these cases is left out, and so is the mean with it.
    """
    measurable = {name: member for name, member in member_names(ensemble).items() if not member.lacks(cases)}
    if not measurable:
        return {}
    names = [*measurable, *["all together"] * (1 < len(measurable) == len(ensemble.teachers))]
    measured = digest({"cases": [fingerprint(case) for case in cases], "names": names})[:16]
    path = target_folder(cache, ensemble, plan) / f"validation-{measured}.json"
    if of_main(path.exists()):
        return of_main(_read_scores(path) if is_main() else {})
    pooled = {name: PooledDice(dataset.labels) for name in names}
    with Bar("teachers on the validation cases", len(cases)) as bar:
        for case in share_of(cases):
            volume, mask = read_labelled_case(case, dataset)
            onto = grid(plan, volume.geometry)
            truth = preprocess_labels(mask, volume.geometry, plan)
            prompts = _prompts(ensemble, volume, mask, dataset)
            answers = [
                member.probabilities(volume, onto, prompts if member.prompts_required else None, case=case.name)
                for member in measurable.values()
            ]
            together = [ensemble.mean(answers)] if len(names) > len(answers) else []
            for score, values in zip(pooled.values(), [*answers, *together], strict=True):
                score.add(values.argmax(0), truth)
            bar.advance(case.name)
    scores = {name: score.of_all_ranks().scores() for name, score in pooled.items()}
    if is_main():
        write_json(path, scores)
    return scores


def member_names(ensemble: Ensemble) -> dict[str, Member]:
    """The teachers by the names under which their scores stand: their number and their folder's name."""
    return {f"{number} {member.name}": member for number, member in enumerate(ensemble.teachers, start=1)}


def _read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Dice by class for each teacher, as they were written. Raises BadInputError for what is no such file."""
    scores = read_json(path)
    rows = scores.values() if isinstance(scores, dict) else [None]
    if not all(isinstance(row, dict) and all(type(dice) is float for dice in row.values()) for row in rows):
        raise BadInputError(f"{path}: holds no scores of teachers; delete the file, they are measured anew")
    return scores


def _prompts(ensemble: Ensemble, volume: Volume, mask: np.ndarray | None, dataset: Dataset) -> ScanPrompts | None:
    """What teachers are shown that find nothing without prompts: a box on every slice that holds a class."""
    if not ensemble.prompts_required or mask is None:
        return None
    plan = next(teacher.plan for teacher in ensemble.runs if teacher.prompts_required)
    axis = slice_axis(plan, volume.geometry)
    return prompts_from_truth("boxes", mask, labels=dataset.labels, spacing=volume.geometry.spacing, axis=axis)


def _check_size(predicted: float, limit: float, folder: Path, cases: int) -> None:
    if predicted > limit:
        raise UsageError(
            f"{folder}: the teacher targets of {cases} cases would take about {predicted / 1e9:.3g} GB, the limit is "
            f"{limit / 1e9:.3g} GB; raise --cache-limit, or use --online, which needs no cache"
        )
