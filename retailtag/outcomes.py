"""What each verb returns: tables, the objects behind them, and fitted models ready to tag."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retailtag.display import Displayed, View, table_of
from retailtag.errors import DataError, UsageError
from retailtag.progress import SILENT, Progress

if TYPE_CHECKING:  # scoring starts without PyTorch and pyarrow
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from retailtag.bakeoffs.run import BakeoffRun
    from retailtag.catalog.catalog import Catalog
    from retailtag.extraction.engines import ChosenEngine
    from retailtag.extraction.extract import ExtractSummary
    from retailtag.finetuning.search import Ranking
    from retailtag.predictions import Predictions
    from retailtag.report.decision import Decision
    from retailtag.report.results import BakeoffResult
    from retailtag.runs.audit import Audit
    from retailtag.runs.export import ExportRun
    from retailtag.runs.finetune import FinetuneRun
    from retailtag.runs.latency import LatencyRow
    from retailtag.runs.probe import ProbeRun
    from retailtag.runs.similar import Found, Gallery
    from retailtag.runs.similar_evaluation import Evaluation
    from retailtag.runs.tune import TuneRun
    from retailtag.scoring.compare import Comparison
    from retailtag.scoring.files import ComparedFiles, ScoredFiles
    from retailtag.scoring.finding import Finding
    from retailtag.scoring.scorecard import ScoreCard
    from retailtag.settings import ComputeSettings
    from retailtag.statistics.drift import DriftResult
    from retailtag.store import FeatureStore
    from retailtag.tagger.tagger import Tagger

# What `GroupSummary` says of the population: the estimate and its interval.
ESTIMATE = ("macro_f1_population", "macro_f1_low", "macro_f1_high")

EXPORTED = "tagger.json"  # header of an exported folder
DIFFERENCES = "Differences in macro-F1 in the population"


def load_tagger(
    folder: Path,
    compute: ComputeSettings,
    *,
    progress: Progress = SILENT,
    assignment: str | None = None,
    one_of: Sequence[str] = (),
    **limits: Any,
) -> Tagger:
    """Load the model in a folder: a probe, fine-tune, export, or a bake-off's recommended pair.

    Parameters
    ----------
    folder : Path
    compute : ComputeSettings
        Gives the device and local weights.
    assignment, one_of
        As for `Tagger.assigning`. By default what the bake-off was run with or the export records,
        else ``at-most-one`` of attributes that are named or recorded with the model: the catalogue
        says that an image has one value of them. ``independent`` where there are none.
    **limits
        ``max_pixels`` and ``allow_truncated``, as `load_fitted` takes them.
    """
    from retailtag.backbones.ids import local_weights
    from retailtag.compute import resolve_device
    from retailtag.statistics.exclusive import AT_MOST_ONE, INDEPENDENT
    from retailtag.tagger.loading import backbones_of, load_fitted

    if (folder / "bakeoff.json").is_file():
        folder, recorded = recommended_folder(folder)
        assignment = assignment or recorded
    ids = list(backbones_of(folder))
    if compute.weights and (folder / EXPORTED).is_file():
        raise UsageError(f"{folder} is an export with weights of its own; leave --weights out.")
    local = local_weights(compute.weights if ids else (), ids)
    device = resolve_device(compute.device)
    tagger = load_fitted(folder, weights=local, device=device, progress=progress, **limits)
    default = AT_MOST_ONE if one_of or tagger.exclusive else INDEPENDENT
    if (folder / EXPORTED).is_file() and not one_of:
        default = tagger.assignment  # chosen when it was exported
    elif tagger.exclusive and not (assignment or one_of):
        progress.say(
            f"An image is given at most one tag of {', '.join(tagger.exclusive)}, by default; its "
            "scores may count independent tags, which --assign independent gives."
        )
    return tagger.assigning(assignment or default, one_of)


def recommended_folder(run: Path, pair: str | None = None) -> tuple[Path, str | None]:
    """Folder of a pair of the bake-off in `run`, by default the recommended, and its assignment.

    The assignment is None for ``independent``, which a bake-off that was not told records too.

    Raises `UsageError` if there is no pair of that name, which may be short: ``demo:cnn probe``.
    """
    from retailtag.bakeoffs.request import pair_folder
    from retailtag.report.decision import decide
    from retailtag.report.results import BakeoffResult
    from retailtag.statistics.exclusive import INDEPENDENT

    path = run / "bakeoff.json"
    result = BakeoffResult.load(path)
    try:
        if pair is not None:
            name = _pair_name(result, pair)
        else:
            name = result.recommended or decide(result).winner
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    found = result.pair(name)
    assigned = found.scorecard.assignment
    folder = pair_folder(run, found.backbone, found.strategy)
    return folder, None if assigned == INDEPENDENT else assigned


def _pair_name(result: BakeoffResult, name: str) -> str:
    """Full name of a pair from it or its short name, with a space or the dot between."""
    from retailtag.backbones.names import SEPARATOR, short_models

    full = [pair.name for pair in result.pairs]
    short = short_models(full, dict(result.names))
    known = {n.replace(SEPARATOR, " "): long for long in full for n in (long, short[long])}
    if (wanted := " ".join(name.replace(SEPARATOR, " ").split())) not in known:
        listed = ", ".join(f"{short[long]!r}" for long in full)
        raise UsageError(f"--pair {name} is no pair of the bake-off; it has {listed}.")
    return known[wanted]


def fitted_models(runs: Sequence[Path]) -> dict[str, Path]:
    """Folders of the models of runs by name, of a bake-off all its pairs.

    Raises
    ------
    DataError
        If a folder holds no model.
    UsageError
        If a model is named twice.
    """
    from retailtag.bakeoffs.request import pair_folder
    from retailtag.report.results import BakeoffResult

    found: list[tuple[str, Path]] = []
    for run in runs:
        if (run / "bakeoff.json").is_file():
            pairs = BakeoffResult.load(run / "bakeoff.json").ranking
            found += [(p.name, pair_folder(run, p.backbone, p.strategy)) for p in pairs]
        elif any((run / name).is_file() for name in (EXPORTED, "checkpoint.json", "probe.json")):
            found.append((str(run), run))
        else:
            raise DataError(
                f"{run} holds no model; name the folder of a probe, a fine-tune or a bake-off."
            )
    named = dict(found)
    if len(named) < len(found) or not found:
        raise UsageError("Name each RUN once, and one at least.")
    return named


@dataclass(frozen=True, eq=False, repr=False)
class ExtractOutcome(Displayed):
    """What an extraction did, backbone by backbone.

    Parameters
    ----------
    summaries : tuple of ExtractSummary
        In the order of the backbones.
    engines : tuple of ChosenEngine
        What computed the embeddings of each, and why.
    """

    summaries: tuple[ExtractSummary, ...]
    engines: tuple[ChosenEngine, ...]

    @property
    def stores(self) -> dict[str, FeatureStore]:
        """Feature store of each backbone."""
        return {s.store.spec.backbone: s.store for s in self.summaries}

    @property
    def table(self) -> pa.Table:
        """One row per backbone: counts of images, seconds, size and place of its store."""
        return table_of(
            {
                "backbone": s.store.spec.backbone,
                "engine": s.store.spec.engine,
                "dim": s.store.spec.dim,
                "computed": s.n_computed,
                "reused": s.n_reused,
                "absent": len(s.absent),
                "seconds": s.seconds,
                "images_per_second": s.images_per_second,
                "bytes": s.store.nbytes,
                "store": str(s.store.path),
            }
            for s in self.summaries
        )

    def views(self) -> Iterable[View]:
        """The table."""
        yield View("Features", self.table)


@dataclass(frozen=True, eq=False, repr=False)
class ProbeOutcome(Displayed):
    """A fitted probe, its choices and its predictions.

    Parameters
    ----------
    run : ProbeRun
    folder : Path
        Where its files are.
    catalog : Catalog
    compute : ComputeSettings
        Gives device and local weights to `tagger`.
    """

    run: ProbeRun
    folder: Path
    catalog: Catalog
    compute: ComputeSettings

    @property
    def predictions(self) -> Predictions:
        """Logits of the val and test images."""
        return self.run.predictions

    @cached_property
    def tagger(self) -> Tagger:
        """The model, ready to tag images; loaded on first use."""
        return load_tagger(self.folder, self.compute)

    @cached_property
    def per_tag(self) -> pa.Table:
        """One row per tag: group, support in training, out-of-fold AP, C, threshold (a logit)."""
        import pyarrow as pa

        from retailtag.runs.heads import taken_ap

        probe, table = self.run.probe, self.catalog.table
        ap = taken_ap(self.folder / "heads.parquet")[probe.head]
        return pa.table(
            {
                "tag": list(probe.tags),
                "group": table.group.tolist(),
                "support": table.train_count,
                "ap": [ap[tag] for tag in probe.tags],
                "C": probe.C,
                "threshold": probe.thresholds,
            }
        )

    def views(self) -> Iterable[View]:
        """Out-of-fold macro-AP and the chosen setting of each group of tags."""
        probe = self.run.probe
        summary = table_of(
            {"tags": name, "setting": row["setting"], "macro_ap": row["macro_ap"]}
            for name, row in probe.facts["out_of_fold"].items()
        )
        notes = [f"{sentence} {remedy}" for _, sentence, remedy in self.run.findings]
        title = f"Probe of {probe.facts['backbone']}: {probe.head}, out of fold"
        yield View(title, summary, (*notes, f"Folder: {self.folder}"))


@dataclass(frozen=True, eq=False, repr=False)
class FinetuneOutcome(Displayed):
    """A fine-tune, or several that differ in their seed alone.

    Parameters
    ----------
    runs : tuple of FinetuneRun
    folder : Path
        Where the files are; of several seeds, each has its own folder within.
    compute : ComputeSettings
        Gives device and local weights to `tagger`.
    search : Ranking, optional
        Settings that were tried first, best first.
    """

    runs: tuple[FinetuneRun, ...]
    folder: Path
    compute: ComputeSettings
    search: Ranking | None = None

    @property
    def predictions(self) -> Predictions:
        """Logits of the test images; of several seeds, those of the first."""
        return self.runs[0].predictions

    @cached_property
    def tagger(self) -> Tagger:
        """The model, ready to tag images; loaded on first use. Of several seeds, the first."""
        first = self.folder / f"seed-{_seed(self.runs[0])}"
        return load_tagger(first if len(self.runs) > 1 else self.folder, self.compute)

    @property
    def history(self) -> pa.Table:
        """One row per epoch: loss, and scores on the validation set."""
        return table_of(
            {"seed": _seed(run), **row, "best": row["epoch"] == run.best_epoch}
            for run in self.runs
            for row in run.history
        )

    def views(self) -> Iterable[View]:
        """The history."""
        title = f"Fine-tune of {self.runs[0].checkpoint.backbone}, scores on the validation set"
        yield View(title, self.history, (f"Folder: {self.folder}",))


def _seed(run: FinetuneRun) -> int:
    return int(run.checkpoint.facts["settings"]["seed"])


@dataclass(frozen=True, eq=False, repr=False)
class ExportOutcome(Displayed):
    """An exported tagger: its folder, and how it compares with the model that it was made from.

    Parameters
    ----------
    run : ExportRun
    """

    run: ExportRun

    @property
    def folder(self) -> Path:
        """Where the tagger is."""
        return self.run.folder

    @property
    def tagger(self) -> Tagger:
        """The tagger as loaded from the folder."""
        return self.run.tagger

    @property
    def operating_points(self) -> pa.Table:
        """One row per operating point: what it gives on the test split."""
        return table_of(asdict(point) for point in self.run.points)

    @property
    def calibration(self) -> pa.Table:
        """One row per measurement and scope: errors before and after calibration."""
        return table_of(
            {
                "measured_on": where,
                "scope": scope,
                **{
                    f"{error}_{when}": value
                    for when, errors in one.items()
                    for error, value in errors.items()
                },
            }
            for where in ("cross_fit", "test")
            for scope, one in self.run.calibration.get(where, {}).items()
        )

    def views(self) -> Iterable[View]:
        """Operating points and errors of the calibration, with notes."""
        notes = (*self.run.notes, *([self.run.checked] if self.run.checked else []))
        folder = f"Folder: {self.folder}"
        if self.run.points:
            yield View("Operating points on held-out images", self.operating_points, ())
        if self.run.calibration:
            yield View("Calibration", self.calibration, (*notes, folder))
        else:
            files = table_of({"file": n, "bytes": size} for n, size in self.run.files.items())
            yield View("Exported files", files, (*notes, folder))


@dataclass(frozen=True, eq=False, repr=False)
class TuneOutcome(Displayed):
    """A fitted model with other thresholds.

    Parameters
    ----------
    run : TuneRun
    folder : Path
        Where the model is.
    compute : ComputeSettings
        Gives device and local weights to `tagger`.
    """

    run: TuneRun
    folder: Path
    compute: ComputeSettings

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """Logit from which each tag is given, (n_tags,); infinite: never."""
        return self.run.tuned.thresholds

    @cached_property
    def tagger(self) -> Tagger:
        """The model, ready to tag images; loaded on first use."""
        return load_tagger(self.folder, self.compute)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the thresholds do besides maximising their objective."""
        tuned, notes = self.run.tuned, []
        if self.run.n_never:
            notes.append(f"{self.run.n_never:,} tags do not reach the objective: never given.")
        if tuned.shift:
            notes.append(
                f"All thresholds were raised by {tuned.shift:.3g} logits, to {tuned.max_tags:g} "
                "tags an image."
            )
        return (*notes, f"Folder: {self.folder}")

    def views(self) -> Iterable[View]:
        """What the thresholds give on the images that they were tuned on."""
        points = table_of(map(asdict, self.run.given.values()))
        yield View(f"Thresholds, rule {self.run.tuned.rule}", points, self.notes)


@dataclass(frozen=True, eq=False, repr=False)
class DriftOutcome(Displayed):
    """New images compared with a reference.

    Parameters
    ----------
    result : DriftResult
    page : Path or None
        The HTML page, if one was written.
    """

    result: DriftResult
    page: Path | None

    @property
    def tags(self) -> pa.Table:
        """One row per tag: its rate in the reference and among the new images, and p."""
        return table_of(
            {
                "tag": t.tag,
                "reference": t.reference.value,
                "new": t.new.value,
                "difference": t.difference.value,
                "low": t.difference.low,
                "high": t.difference.high,
                "p_adjusted": t.p_adjusted,
            }
            for t in self.result.tags
        )

    def views(self) -> Iterable[View]:
        """The tests, and the remedies in sentences."""
        result = self.result
        verdict = "Drift" if result.has_drifted else "No drift"
        title = f"{verdict}: p = {result.p:.3g}, alarm at {result.alpha:g}"
        remedies = [f"{r.because} {r.do}" for r in result.remedies]
        yield View(title, table_of(map(asdict, result.families)), (*remedies, *result.notes))


@dataclass(frozen=True, eq=False, repr=False)
class AuditOutcome(Displayed):
    """Labels that are likely wrong.

    Parameters
    ----------
    audit : Audit
    out : Path
        CSV of the suspects.
    """

    audit: Audit
    out: Path

    @property
    def suspects(self) -> pa.Table:
        """One row per product and tag, the most suspicious first."""
        return table_of(asdict(suspect) for suspect in self.audit.suspects)

    @property
    def notes(self) -> tuple[str, ...]:
        """How many there are, and where."""
        images = "validation" if self.audit.is_validation else "training"
        kinds = [s.kind for s in self.audit.suspects]
        return (
            f"{len(kinds):,} labels of {self.audit.n_images:,} {images} images: "
            f"{kinds.count('error'):,} likely errors, {kinds.count('gap'):,} likely gaps.",
            f"Suspects: {self.out}",
        )

    def views(self) -> Iterable[View]:
        """The suspects."""
        yield View("Suspicious labels", self.suspects, self.notes)


@dataclass(frozen=True, eq=False, repr=False)
class SimilarOutcome(Displayed):
    """Products that look most like each query.

    Parameters
    ----------
    gallery : Gallery
        What was searched.
    found : tuple of Found
        The queries with their hits, in the order asked.
    notes : tuple of str
    """

    gallery: Gallery
    found: tuple[Found, ...]
    notes: tuple[str, ...]

    @property
    def table(self) -> pa.Table:
        """One row per query and product found, the most alike first."""
        found = [one.to_json() for one in self.found]
        return table_of(
            {"kind": one["kind"], "query": one["query"], **hit}
            for one in found
            for hit in one["hits"]
        )

    def write_sheet(self, path: Path | str) -> None:
        """Draw queries and products found on one HTML page that needs nothing but itself.

        Raises `UsageError` if the path does not end in ``.html``.
        """
        from retailtag.files import write_text
        from retailtag.report.similar_sheet import Shelf, check_ending, similar_sheet

        check_ending(Path(path))
        shelves = [
            Shelf(
                one.query.label,
                one.query.read,
                [hit.row for hit in one.hits],
                [hit.lines for hit in one.hits],
            )
            for one in self.found
        ]
        catalog = self.gallery.context.catalog
        title = f"Similar products in {catalog.path.name}"
        write_text(Path(path), similar_sheet(catalog, shelves, title))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {
            **self.gallery.to_json(),
            "notes": list(self.notes),
            "queries": [one.to_json() for one in self.found],
        }

    def views(self) -> Iterable[View]:
        """A table of all hits."""
        table = self.table
        kept = [
            c
            for c in ("query", "rank", "similarity", "product", "image_id")
            if c in table.column_names
        ]
        yield View("Similar products", table.select(kept), self.notes)


@dataclass(frozen=True, eq=False, repr=False)
class SimilarEvaluation(Displayed):
    """How well the embeddings of each backbone find what is relevant.

    Parameters
    ----------
    evaluations : tuple of Evaluation
        In the order of the backbones.
    """

    evaluations: tuple[Evaluation, ...]

    @property
    def table(self) -> pa.Table:
        """One row per backbone, metric and scope: the mean over queries with its interval."""
        return table_of(
            {"backbone": one.searched["backbone"], **asdict(score)}
            for one in self.evaluations
            for score in one.scores
        )

    def views(self) -> Iterable[View]:
        """The table."""
        notes = dict.fromkeys(note for one in self.evaluations for note in one.notes)
        yield View("Similar products, evaluated", self.table, tuple(notes))


@dataclass(frozen=True, eq=False, repr=False)
class ScoreOutcome(Displayed):
    """Scorecards of predictions, and the comparison of every two models.

    Parameters
    ----------
    scored : ScoredFiles
        Scorecards, where they were written, and comparisons, as objects.
    findings : tuple of Finding
        About the split; each scorecard has its own.
    """

    scored: ScoredFiles
    findings: tuple[Finding, ...]

    @property
    def scorecards(self) -> tuple[ScoreCard, ...]:
        """One per predictions file, in the order given."""
        return self.scored.cards

    @property
    def per_tag(self) -> pa.Table:
        """One row per model and tag: counts, precision, recall, F1, AP, threshold."""
        return _tag_table(self.scorecards)

    @property
    def summaries(self) -> pa.Table:
        """One row per model and scope (all, tail, common, frequent, ...): macro averages."""
        return table_of(
            {"model": card.model, **asdict(summary)}
            for card in self.scorecards
            for summary in card.summaries.values()
        )

    @property
    def comparisons(self) -> pa.Table:
        """One row per pair of models and scope; without columns if there is one model."""
        return _comparison_table(self.scored.comparisons)

    def views(self) -> Iterable[View]:
        """Macro averages, and differences if there are several models."""
        columns = ["model", "scope", "n_tags", *ESTIMATE, "macro_f1", "macro_ap"]
        summaries = self.summaries.select(columns)
        title = f"Scores on the {self.scorecards[0].split} split"
        yield View(title, summaries, _sentences(self.findings))
        if self.scored.comparisons:
            yield View(DIFFERENCES, _brief(self.comparisons))


@dataclass(frozen=True, eq=False, repr=False)
class CompareOutcome(Displayed):
    """Models ranked on the same images, and every two compared.

    Parameters
    ----------
    compared : ComparedFiles
        Standings and comparisons, as objects.
    findings : tuple of Finding
        About the split and the runs.
    out : Path
        CSV of the pairs.
    """

    compared: ComparedFiles
    findings: tuple[Finding, ...]
    out: Path

    @property
    def standings(self) -> pa.Table:
        """One row per scope and model, best first."""
        return table_of(asdict(s) for s in self.compared.contest.standings)

    @property
    def pairs(self) -> pa.Table:
        """One row per pair of models and scope: difference, interval, p, verdict."""
        return _comparison_table(self.compared.contest.comparisons)

    def views(self) -> Iterable[View]:
        """The ranking, then the differences."""
        ranking = "Ranking by macro-F1 in the population"
        yield View(ranking, self.standings, _sentences(self.findings))
        if self.compared.contest.comparisons:
            yield View(DIFFERENCES, _brief(self.pairs), (f"Pairs: {self.out}",))


@dataclass(frozen=True, eq=False, repr=False)
class LatencyOutcome(Displayed):
    """Latency of models by engine and batch size.

    Parameters
    ----------
    rows : tuple of LatencyRow
        Measured here, then merged.
    out : Path
        CSV of the rows.
    """

    rows: tuple[LatencyRow, ...]
    out: Path

    @property
    def table(self) -> pa.Table:
        """One row per model, engine, batch size and machine."""
        return table_of(asdict(row) for row in self.rows)

    def views(self) -> Iterable[View]:
        """The figures that choose an engine and a batch size."""
        columns = ["pair", "engine", "batch_size", "is_fastest", "tags_ms_p50", "model_ms_p50"]
        columns += ["images_per_second", "memory_mib", "agreement"]
        yield View("Latency", self.table.select(columns), (f"All figures: {self.out}",))


@dataclass(frozen=True, eq=False, repr=False)
class BakeoffOutcome(Displayed):
    """A bake-off: the ranking of the pairs, the decision, and the recommended model.

    Parameters
    ----------
    run : BakeoffRun
        What ran, what was reused, and the result as objects.
    folder : Path
        Of the run.
    compute : ComputeSettings
        Gives device and local weights to `recommended`.
    """

    run: BakeoffRun
    folder: Path
    compute: ComputeSettings

    @property
    def decision(self) -> Decision:
        """The recommended pair and the reasons."""
        return self.run.decision

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.run.report

    @cached_property
    def recommended(self) -> Tagger:
        """The recommended model, ready to tag images; loaded on first use."""
        return load_tagger(self.folder, self.compute)

    @property
    def ranking(self) -> pa.Table:
        """One row per pair, best first: macro-F1 in the population with interval, tail, costs."""
        return table_of(
            {
                "pair": pair.name,
                "backbone": pair.backbone,
                "strategy": pair.strategy,
                "recommended": pair.name == self.decision.winner,
                "tied": pair.name in self.decision.ties,
                **{
                    name: getattr(pair.scorecard.summaries["all"], name)
                    for name in (*ESTIMATE, "macro_f1")
                },
                "tail_macro_f1_population": pair.scorecard.summaries["tail"].macro_f1_population,
                "tail_macro_f1": pair.scorecard.summaries["tail"].macro_f1,
                "macro_ap": pair.scorecard.summaries["all"].macro_ap,
                **pair.cost.flat(),
            }
            for pair in self.run.result.ranking
        )

    @property
    def per_tag(self) -> pa.Table:
        """One row per pair and tag: counts, precision, recall, F1, AP, threshold."""
        return _tag_table([pair.scorecard for pair in self.run.result.ranking])

    @property
    def comparisons(self) -> pa.Table:
        """One row per two pairs and scope: difference, interval, p, verdict."""
        return _comparison_table(self.run.result.comparisons)

    def views(self) -> Iterable[View]:
        """The ranking, and the decision in sentences."""
        columns = ["pair", "recommended", "tied", *ESTIMATE]
        columns += ["tail_macro_f1_population", "latency_ms_p50", "train_seconds"]
        winner = f"Use {self.decision.winner} (decided by {self.decision.decided_by})."
        notes = (winner, *self.decision.reasons, f"Report: {self.report}")
        yield View("Ranking of the pairs", self.ranking.select(columns), notes)


def _tag_table(cards: Sequence[ScoreCard]) -> pa.Table:
    return table_of({"model": card.model, **asdict(row)} for card in cards for row in card.tags)


def _comparison_table(comparisons: Sequence[Comparison]) -> pa.Table:
    return table_of(
        {
            "a": c.a,
            "b": c.b,
            "scope": c.scope,
            "difference": c.difference.value,
            "low": c.difference.low,
            "high": c.difference.high,
            "standard_error": c.difference.standard_error,
            "detectable": c.difference.detectable,
            "p": c.p,
            "p_holm": c.p_holm,
            "test": c.test,
            "verdict": c.verdict,
        }
        for c in comparisons
    )


def _brief(comparisons: pa.Table) -> pa.Table:
    columns = ["a", "b", "scope", "difference", "low", "high", "p_holm", "verdict"]
    return comparisons.select(columns) if comparisons.num_rows else comparisons


def _sentences(findings: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(f"{finding.sentence} {finding.remedy}" for finding in findings)
