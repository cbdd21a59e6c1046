"""How long each stage of a bake-off takes and what it writes: counted work at measured speeds.

Constants come from recorded runs on two processors without a GPU (`results/plan.csv` holds
estimates beside what was measured).
"""

from __future__ import annotations

import time
from functools import cached_property

from retailtag.backbones import components_of
from retailtag.backbones.engines import AUTO
from retailtag.backbones.engines.build import candidates, why_unavailable
from retailtag.backbones.engines.names import EAGER
from retailtag.backbones.engines.trial import pays
from retailtag.bakeoffs.pairs import BATCH
from retailtag.bakeoffs.request import Request
from retailtag.bakeoffs.speed import Clock, Measure, Speed, counted, matrix_rate, model_cost
from retailtag.extraction.engines import MIN_IMAGES_FOR_TRIAL
from retailtag.finetuning.activation_cache import parse_budget
from retailtag.finetuning.augment import Augment
from retailtag.finetuning.checks import repeats_pixels
from retailtag.probes.grid import VALUES_ADDED, parse_grid
from retailtag.probes.heads.ridge import CALIBRATION_IMAGES, STRENGTHS
from retailtag.probes.heads.text_prior import WEIGHTS
from retailtag.probes.scaling import parse_scales
from retailtag.runs.finetune_start import VALIDATION_SHARE
from retailtag.runs.heads import competing
from retailtag.runs.stage import Estimate
from retailtag.tagger.latency import BATCHES, SINGLE, Schedule

SUSTAINED = 1.3  # seconds per image over minutes, by those of the fastest pass of a trial

# Extraction
START_SECONDS = 2.5  # of the processes that decode, and of the store
# Speed by that of eager float32: 1.7 to 2.1 in recorded trials, compile 1.3
ENGINE_GAIN = {"openvino": 1.8, "onnxruntime": 1.8, "compile": 1.3}
TRIAL_SECONDS = {"openvino": 4.0, "onnxruntime": 7.0, "compile": 60.0}  # build, compare and time

# Probes. Operations are counted at the rate of a large matrix product.
PASSES_PER_FIT = 4.5  # over the images, each two products with the features
CELL_OPERATIONS = 1600  # per (image, tag) of a pass, apart from its products
# A fit inverts Hessians of working sets that grow with the images until these are many beside the
# features: 1,800 · dim^0.6 · min(images, 20 · dim) operations describe 128 to 2,048 features and
# 2,000 to 38,000 images; few images cost as much as 1,500.
WORKING_OPERATIONS = 1800
WORKING_POWER = 0.6
WORKING_IMAGES_PER_FEATURE = 20
WORKING_IMAGES = 1500
FIT_SECONDS = 0.2e-3  # per fit, besides
REFIT_STRENGTHS = 3  # distinct strengths that are fitted again at the end
USUAL_STRENGTHS = (1e-3, 1.0)  # that groups choose; a grid that ends inside is widened
FITS_PER_TEXT_FIT = 2.2  # seconds of a fit with texts, by those of one without
TEXT_STRENGTHS = 5  # those of the groups and their neighbours: 4 to 6 in recorded runs
PLATT_SECONDS = 4e-7  # per (strength, image, tag) that carries the Platt map of a ridge
EIGEN_OPERATIONS = 17  # times dim³, of an eigendecomposition in float64, which has half the rate
NEIGHBOUR_SECONDS = 4e-8  # per two images that are compared, apart from the product
SCORE_SECONDS = 5e-8  # per (image, tag) whose average precision is taken
TUNE_SECONDS = 0.9e-6  # per (image, tag) whose threshold is tuned
TUNINGS = 1.5  # of the chosen head, to state the optimism of its thresholds

# Fine-tunes
INTERPOLATIONS = 3  # validated after the last epoch
READ_BYTES_PER_SECOND = 1e9  # of cached activations, checked
VIEW_SECONDS = 0.001  # of an augmented view, on one core

# Report
REPORT_SECONDS = 4.0  # of drawing
REPLICATE_SECONDS = 5e-10  # per replicate, scored (image, tag) and pair of models
CARD_BYTES = 1500  # per tag and pair: scorecard, tables, page

TAG_SECONDS = 0.005  # of one image besides the model: its bytes, head and thresholds
BYTES_FLOAT32 = 4
STORED_FACTS_BYTES = 64  # per image: id and SHA-256
LATENCY_BYTES = 1.5e3
SWEEP_ROW_BYTES = 20  # of a (fold, strength, tag) in the sweep's table
HEADS_ROW_BYTES = 9  # of a (candidate, tag) in the table of heads


class Estimator:
    """Estimates of the stages of one bake-off; no weights are read.

    `measure` gives the speed of a single backbone; without it the speed is counted. `clock` times
    products of matrices.
    """

    def __init__(
        self,
        request: Request,
        measure: Measure | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.request = request
        catalog = request.context.catalog
        self.n_tags = len(catalog.table.tags)
        self.n_train = len(catalog.rows("train"))
        self.n_val = len(catalog.rows("val"))
        self.n_test = len(catalog.rows("test"))
        self.measure = measure
        self.clock = clock

    @cached_property
    def rate(self) -> float:
        """See `matrix_rate`."""
        return matrix_rate(self.request.context.device, self.clock)

    @cached_property
    def host_rate(self) -> float:
        """The same on the processor, where ridge regressions are solved."""
        return self.rate if self.request.context.device == "cpu" else matrix_rate("cpu", self.clock)

    def speed(self, backbone: str) -> Speed:
        """Speed of a backbone; see `retailtag.bakeoffs.speed`."""
        if self.measure is None:
            return counted(backbone, self.rate)
        first, *others = (
            self.measure(component, component in self.request.fine_tuned)
            for component in components_of(backbone)
        )
        return sum(others, first)

    def extract(self, backbone: str, n_new: int) -> Estimate:
        """Embed and store `n_new` images, with the trial of the engines."""
        speed = self.speed(backbone)
        trial, gain = self._engine(speed, n_new)
        # Backbones share the decoding.
        n_backbones = len({c for b in self.request.settings.backbones for c in components_of(b)})
        seconds = START_SECONDS / n_backbones + speed.load + trial
        seconds += n_new * self._together(speed.forward / gain, speed.decode / n_backbones)
        value_bytes = 2 if self.request.settings.extract.dtype == "float16" else 4
        image_bytes = model_cost(backbone).dim * value_bytes + STORED_FACTS_BYTES
        return Estimate(seconds if n_new else 0.0, float(n_new) * image_bytes)

    def probe(self, backbone: str) -> Estimate:
        """Sweep C out of fold under every scaling, try the other heads, and tune thresholds."""
        probe = self.request.settings.probe
        model = model_cost(backbone)
        scales = parse_scales(probe.scale)
        heads = set(competing(probe.heads, self.n_train, self.n_tags))
        if not (model.has_text and "standardise" in scales):
            heads.discard("text")
        n = self.n_train * (probe.folds - 1) // probe.folds
        n_strengths = _n_strengths(probe.sweep_C)
        seconds = self._final_fit(model.dim, self.n_train)
        seconds += probe.folds * len(scales) * self._fits(model.dim, n, n_strengths)
        n_swept = n_candidates = len(scales) * n_strengths
        if "ridge" in heads:
            seconds += probe.folds * self._ridge(model.dim, n)
            n_candidates += len(STRENGTHS)
        if "knn" in heads:
            pairs = n * n / (probe.folds - 1)
            each = 2 * model.dim / self.rate + NEIGHBOUR_SECONDS
            seconds += probe.folds * pairs * each
        if "text" in heads:
            n_fits = TEXT_STRENGTHS * len(WEIGHTS)
            seconds += probe.folds * self._fits(model.dim, n, FITS_PER_TEXT_FIT * n_fits)
            n_candidates += n_fits
        scored = n_candidates * SCORE_SECONDS + (len(heads) + TUNINGS) * TUNE_SECONDS
        seconds += self.n_train * self.n_tags * scored
        rows = SWEEP_ROW_BYTES * probe.folds * n_swept + HEADS_ROW_BYTES * n_candidates
        # Weights, and logits of the held-out images.
        values = model.dim + self.n_val + self.n_test
        n_bytes = self.n_tags * (BYTES_FLOAT32 * values + rows)
        if "knn" in heads:
            # Embeddings and labels of the training images, in case that neighbours are chosen.
            n_bytes += self.n_train * (BYTES_FLOAT32 * model.dim + self.n_tags)
        return Estimate(seconds, float(n_bytes))

    def finetune(self, backbone: str) -> Estimate:
        """Start from a probe, train, validate every epoch, and predict the test images."""
        settings = self.request.settings.finetune
        speed = self.speed(backbone)
        n_val = self.n_val or round(VALIDATION_SHARE * self.n_train)
        n_fit = self.n_train - (0 if self.n_val else n_val)
        # A refit trains on all images for as many epochs as were best: at most all.
        shown = settings.epochs * (n_fit + (self.n_train if settings.refit else 0))
        validated = n_val * (settings.epochs + 1 + INTERPOLATIONS)
        stored = self._stored_bytes(speed, n_fit, n_val)
        decode = self._together(speed.frozen, speed.decode)
        seconds = speed.load + self._final_fit(model_cost(backbone).dim, n_fit)
        if stored:
            n_stored = stored / self._row_bytes(speed)
            read = self._row_bytes(speed) / READ_BYTES_PER_SECOND
            seconds += n_stored * decode
            seconds += shown * (SUSTAINED * speed.step + read)
            seconds += validated * (SUSTAINED * speed.trained + read)
        else:
            view = VIEW_SECONDS if settings.augment != "none" else 0.0
            again = self._together(speed.frozen, speed.decode + view)
            seconds += shown * (SUSTAINED * speed.step + again)
            seconds += validated * (SUSTAINED * speed.trained + decode)
        seconds += self.n_test * self._together(speed.forward, speed.decode)
        seconds += validated * self.n_tags * (SCORE_SECONDS + 2 * TUNE_SECONDS)
        values = self.n_tags * (model_cost(backbone).dim + self.n_test)
        weights = model_cost(backbone).weight_bytes
        return Estimate(seconds, float(stored + weights + BYTES_FLOAT32 * values))

    def latency(self, backbone: str) -> Estimate:
        """Tag test images one by one and in batches, in turn with the other pairs."""
        speed = self.speed(backbone)
        single = _scheduled(SINGLE, speed.single + speed.decode + TAG_SECONDS)
        batches = _scheduled(BATCHES, BATCH * (speed.forward + speed.decode))
        return Estimate(speed.load + single + batches, LATENCY_BYTES)

    def report(self) -> Estimate:
        """Score, compare and draw."""
        settings = self.request.settings
        n = sum(len(self.request.strategies_of(b)) for b in settings.backbones)
        cells = self.n_test * self.n_tags
        n_comparisons = n + n * (n - 1) / 2
        seconds = REPORT_SECONDS + n_comparisons * (
            settings.score.replicates * cells * REPLICATE_SECONDS + cells * TUNE_SECONDS
        )
        return Estimate(seconds, float(n * CARD_BYTES * self.n_tags))

    def _together(self, compute: float, decode: float) -> float:
        """Seconds per image: a GPU computes while processes decode, on a CPU both want cores."""
        context = self.request.context
        decode /= max(context.workers, 1)
        both = max(compute, decode) if context.device == "cuda" else compute + decode
        return SUSTAINED * both

    def _engine(self, speed: Speed, n_new: int) -> tuple[float, float]:
        """Seconds that trials of engines take, and how much faster the best is than eager."""
        extract, device = self.request.settings.extract, self.request.context.device
        if extract.engine != AUTO:
            tried = [extract.engine]
        else:
            names = [n for n in candidates("exact", device) if not why_unavailable(n, device)]
            tried = [n.engine for n in names if n != EAGER and pays(n, n_new * speed.forward)]
            if n_new < MIN_IMAGES_FOR_TRIAL:
                tried = []
        trial = sum(TRIAL_SECONDS.get(engine, 0.0) for engine in tried)
        return trial, max((ENGINE_GAIN.get(engine, 1.0) for engine in tried), default=1.0)

    def _fits(self, dim: int, n: int, n_strengths: float) -> float:
        """Seconds to fit all tags at ascending strengths to `n` images."""
        passes = PASSES_PER_FIT * n * (4 * dim + CELL_OPERATIONS)
        few = max(min(n, WORKING_IMAGES_PER_FEATURE * dim), WORKING_IMAGES)
        working = WORKING_OPERATIONS * dim**WORKING_POWER * few
        fit = FIT_SECONDS + (passes + working) / self.rate
        # Gram matrix, its eigenvectors in float64, and the rotation.
        rotation = (9 * n * dim**2 + EIGEN_OPERATIONS * dim**3) / self.rate
        return rotation + self.n_tags * n_strengths * fit

    def _final_fit(self, dim: int, n: int) -> float:
        """Seconds to fit every tag at its own strength."""
        return self._fits(dim, n, REFIT_STRENGTHS)

    def _ridge(self, dim: int, n: int) -> float:
        """Seconds of a ridge regression of all tags at all its strengths."""
        cells = len(STRENGTHS) * min(n, CALIBRATION_IMAGES) * self.n_tags
        # Gram matrix, eigenvectors, and leave-one-out values, all in float64.
        operations = 2 * n * dim**2 + EIGEN_OPERATIONS * dim**3 + 2 * cells * dim
        return cells * PLATT_SECONDS + 2 * operations / self.host_rate

    def _row_bytes(self, speed: Speed) -> int:
        """Bytes of one image's cached activations; auto stores half precision as a rule."""
        wide = self.request.settings.finetune.cache_dtype == "float32"
        return speed.activation_values * (4 if wide else 2)

    def _stored_bytes(self, speed: Speed, n_fit: int, n_val: int) -> float:
        """Bytes of cached activations; 0 where every epoch runs the whole model."""
        settings = self.request.settings.finetune
        if not (repeats_pixels(settings) and settings.epochs):
            return 0.0
        views = max(Augment.parse(settings.augment).views, 1)
        n_rows = views * (n_fit + n_val) if settings.refit else views * n_fit + n_val
        n_bytes = float(n_rows * self._row_bytes(speed))
        budget = parse_budget(settings.cache_gb, self.request.settings.compute.features)
        return n_bytes if n_bytes <= budget else 0.0


def _scheduled(schedule: Schedule, call: float) -> float:
    """Seconds to time a task whose calls take `call`, without the turns that may be added."""
    warm_up = min(schedule.warm_up * call, max(schedule.warm_up_seconds, call))
    visit = min(schedule.calls * call, max(schedule.visit_seconds, call))
    return warm_up + schedule.turns * (call + visit)


def _n_strengths(sweep: str) -> int:
    """Values of a grid, with those by which it is likely to be widened."""
    C = parse_grid(sweep)
    low, high = USUAL_STRENGTHS
    ends = int(C[0] > low) + int(C[-1] < high) if len(C) > 1 else 0
    return len(C) + ends * VALUES_ADDED
