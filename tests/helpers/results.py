"""Made-up results: panels of every kind, records of suites, and results of a run."""

from jaxablate import stats
from jaxablate.config import Config, DataConfig, ModelConfig, TrainConfig, to_dict
from jaxablate.provenance import Provenance
from jaxablate.reports.panels import (
    Bar,
    Bars,
    Beside,
    CircuitEdge,
    CircuitGraph,
    CircuitNode,
    Curves,
    Edge,
    Grid,
    Heatmap,
    Histogram,
    HistogramGrid,
    Network,
    Node,
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
HEATMAP = Heatmap(title="M", caption="", rows=("a", "b"), values=((1.0, 2.0), (0.0, 3.0)), x_label="x",
                  value_label="v", columns=("c", "d"), bars=(0.5, 0.1), bar_label="b")
NETWORK = Network(title="N", caption="", edges=(Edge(first=0, second=1, weight=2.0),),
                  nodes=(Node(label="a", size=0.1), Node(label="b", size=1.0)),
                  size_label="s", weight_label="w")
CIRCUIT = CircuitGraph(title="C", caption="", score_label="s", nodes=(
    CircuitNode(name="Resid Start", kind="start", layer=-1, x=0.0), CircuitNode(name="A0.1", kind="head", layer=0,
                                                                               x=0.5),
    CircuitNode(name="Resid End", kind="end", layer=2, x=0.0)), edges=(
    CircuitEdge(source=0, destination=1, port="Q", score=1.5, negative=False, weight=0.5, label="q"),
    CircuitEdge(source=1, destination=2, score=None, negative=True, weight=1.0, label="r")))
ALL_PANELS = (*PANELS, HEATMAP, NETWORK, CIRCUIT,
              Beside(title="two", caption="", labels=("l", "r"), panels=(HEATMAP, HEATMAP)))
"""One of every kind."""


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
