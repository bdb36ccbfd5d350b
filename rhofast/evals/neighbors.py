"""What stands near in feature space: kNN accuracy, and pictures of the nearest videos."""

from __future__ import annotations

from rhofast.evals.case import Case, placed
from rhofast.evals.features import Progress, part_of
from rhofast.evals.knn import evaluate_knn
from rhofast.evals.scores import Evaluation


def evaluate_neighbors(case: Case, *, untrained: bool = False, progress: Progress | None = None) -> Evaluation:
    """Weighted kNN of a case; the same on every rank. untrained: of the same backbone before training, too. progress:
    called with (samples done, in all). Raises ShardError."""
    config = case.config
    backbones = [case.subject.backbone, *([case.subject.untrained()] if untrained else [])]
    samples = len(case.train) + len(case.test)
    results = [
        evaluate_knn(
            placed(network, config),
            case.train,
            case.test,
            config,
            progress=part_of(progress, number * samples, len(backbones) * samples),
        )
        for number, network in enumerate(backbones)
    ]
    section = config.eval
    return Evaluation(
        kind="knn",
        origin=case.subject.origin,
        step=case.subject.step,
        folder=case.subject.folder,
        trained=results[0],
        untrained=results[1] if untrained else None,
        chance=1 / len(case.train.info.classes),
        classes=case.train.info.classes,
        shards=case.shards(),
        settings={"views": section.views, "neighbors": section.neighbors, "temperature": section.temperature},
        notes=case.notes,
    )
