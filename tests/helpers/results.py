"""Made-up results: panels of every simple kind, records of suites, and results of a run."""

from jaxablate import stats
from jaxablate.config import Config, DataConfig, ModelConfig, TrainConfig, to_dict
from jaxablate.provenance import Provenance
from jaxablate.reports.panels import (
    Bar,
    Bars,
    Curves,
    Grid,
    Histogram,
    HistogramGrid,
    Passage,
    Passages,
    Series,
)
from jaxablate.reports.results import Figure, Results, SuiteRecord
from jaxablate.stats import Estimate

PANELS = (
    HistogramGrid(title="H", caption="c", x_label="rate", mark_label="chance", histograms=(
        Histogram(title="layer 0", edges=(1e-3, 1e-2, 1e-1, 1.0), counts=(3, 0, 2), apart=4, apart_label="dead",
                  mark=0.1),)),
    Bars(title="B", caption="", mark=0.5,
         bars=(Bar("a<b", Estimate(2.0, 1.5, 2.5)), Bar("c", 1.0))),
    Curves(title="C", caption="", x_label="step", y_label="loss", log_y=True,
           series=(Series(label="train", x=(1, 2), y=(3.0, 2.0)),)),
    Grid(title="G", caption="", columns=("name", "n", "none"),
         rows=(("x", 1234567, None), ("y", Estimate(1.8013, 1.7891, 1.8152), 2))),
    Passages(title="P", caption="", passages=(Passage(given="Once <b>", said=(("clean", "upon & a time"),)),)),
)


def record(suite="perplexity", figures=(), panels=(), **options):
    conditions = Provenance(revision="abc", versions={"jax": "0"}, device="1 x cpu", date="2025-01-01T00:00:00+00:00")
    return SuiteRecord(suite=suite, about="about", provenance=conditions, options=options, wall_seconds=1.5,
                       figures=tuple(figures), panels=tuple(panels), details={"x": [1, 2.5, None]})


def results(ablation="local", seed=0, k=8, value=6.0, digest=None, suites=None, data_hash="d" * 64, step=100, **data):
    config = Config(model=ModelConfig(ablation=ablation, k_neurons=k), train=TrainConfig(seed=seed),
                    data=DataConfig(**data))
    figure = Figure("perplexity clean", Estimate(value, value - 0.5, value + 0.5), better="down", range=stats.COUNT)
    suites = {"perplexity": record(figures=[figure])} if suites is None else suites
    return Results(config=to_dict(config), seed=seed, step=step, params_digest=digest or f"{ablation}{k}{seed}",
                   data_hash=data_hash, parameters=10, suites=suites)
