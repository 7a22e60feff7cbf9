"""Configuration: JSON round trip, differences, and errors that say the fix."""

import json

import pytest

from jaxablate.config import (
    FAMILIES,
    ClassificationConfig,
    ClassificationObjective,
    ClassifierConfig,
    Config,
    DataConfig,
    EpochTrainConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SentimentDataConfig,
    TrainConfig,
    differences,
    family,
    from_dict,
    run_from_dict,
    to_dict,
)
from jaxablate.errors import ConfigError


def test_json_round_trip_is_exact():
    model = ModelConfig(n_layers=2, k_neurons=(3, 4), attention_layers=("global", "local"), d_mlp=77)
    config = Config(model=model, optimizer=OptimizerConfig(clip_norm=None), objective=ObjectiveConfig(clean=0.1))
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_goes_through_json_and_takes_sizes(name):
    model = family(name, d_model=48, n_heads=4, head_dim=16, kv_heads=2, n_layers=2)
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(model)))) == model
    assert (model.attention_width, model.key_heads, model.head_width) == (64, 2, 16)


def test_a_config_stored_before_there_were_families_is_the_papers_model():
    stored = to_dict(Config())
    for name in ("norm", "positions", "kv_heads", "mlp", "tied", "logit_cap", "parallel"):
        del stored["model"][name]
    assert from_dict(Config, stored) == Config(model=family("gpt_neo"))


def test_a_run_of_either_kind_goes_through_json():
    classifier = ClassificationConfig(
        model=ClassifierConfig(n_layers=2, ablation="local", k_neurons=(3, 4), padding="paper"),
        objective=ClassificationObjective(layers=(0, 1), stream="both", importance_site="neurons"),
        data=SentimentDataConfig(source="imdb", path="somewhere"),
        train=EpochTrainConfig(patience=0),
    )
    for config in (classifier, ClassificationConfig(), Config()):
        assert run_from_dict(json.loads(json.dumps(to_dict(config)))) == config
        assert hash(run_from_dict(to_dict(config))) == hash(config)


def test_a_stored_run_says_its_task_and_one_without_is_a_language_models():
    assert (to_dict(Config())["task"], to_dict(ClassificationConfig())["task"]) == ("language", "classification")
    stored = to_dict(Config())
    del stored["task"]
    assert run_from_dict(stored) == Config()
    with pytest.raises(ConfigError, match="task='regression' must be one of language, classification"):
        run_from_dict({"task": "regression"})
    with pytest.raises(ConfigError, match=r"task=\['language'\] must be one of"):
        run_from_dict({"task": ["language"]})
    with pytest.raises(ConfigError, match="Config is for task 'language', not 'classification'"):
        from_dict(Config, to_dict(ClassificationConfig()))


def test_whole_numbers_are_taken_for_floats_but_not_the_reverse():
    assert from_dict(ObjectiveConfig, {"clean": 1}).clean == 1.0
    with pytest.raises(ConfigError, match="steps=1.5 must be of type int"):
        from_dict(TrainConfig, {"steps": 1.5})


def test_differences_name_both_values_and_skip_what_is_ignored():
    changed = Config(model=ModelConfig(k_neurons=4), train=TrainConfig(steps=9), mesh=MeshConfig(fsdp=2))
    found = differences(Config(), changed, ignore=("train", "mesh.fsdp"))
    assert found == ["model.k_neurons: stored 8, given 4"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "no field 'modle'; did you mean 'model'"),
        ({"model": {"k_neuron": 3}}, "did you mean 'k_neurons'"),
        ({"model": {"ablation": "locl"}}, "must be one of 'none', 'local', 'global', 'both'"),
        ({"model": 3}, "must be an object"),
        ({"model": {"k_neurons": "8"}}, "must be of type int or"),
        ({"optimizer": {"learning_rate": 10**400}}, "OptimizerConfig.learning_rate must be at most 1.798e"),
        ({"model": {"x" * 10_000: 1}}, "ModelConfig has no field 'x{79}; it has"),
    ],
)
def test_bad_stored_values(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Config, values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ModelConfig(k_neurons=600),
            r"k_neurons=600 must be below the 512 neurons of a layer; choose 1\.\.511",
        ),
        (lambda: ModelConfig(k_attention=0), r"k_attention=0 must be at least 1; choose 1\.\.127"),
        (lambda: ModelConfig(k_attention=(1, 2)), "2 entries for n_layers=8"),
        (lambda: ModelConfig(n_heads=7), "n_heads=7 must divide d_model=128; choose one of 1, 2, 4"),
        (lambda: ModelConfig(d_model=0), "d_model=0 must be positive"),
        # Numbers that no array has: these took minutes to be refused, or overflowed when training began.
        (lambda: ModelConfig(d_model=99_999_999_999), "d_model=99999999999 is out of range; choose -2,147,483,647.."),
        (lambda: ModelConfig(d_model=2**31 - 1, n_heads=2), "d_mlp=8589934588, 4 times d_model, must be at most"),
        (lambda: ModelConfig(d_model=2**31 - 1, d_mlp=8, n_heads=2), "choose one of 1, 2147483647"),
        (lambda: ModelConfig(vocab_size=2**31), "vocab_size=2147483648 is out of range"),
        (lambda: ModelConfig(context_length=10**5000), "context_length=a number of 16,610 bits is out of range"),
        (lambda: ModelConfig(n_layers=99_999_999), "n_layers=99999999 must be at most 1024"),
        (lambda: ClassifierConfig(n_layers=4_294_967_296), "n_layers=4294967296 is out of range"),
        (lambda: TrainConfig(batch_size=2**31), "batch_size=2147483648 is out of range"),
        (lambda: TrainConfig(seed=10**23), r"seed=1000.* is out of range; choose -9,223,372,036,854,775,807\.\."),
        (lambda: EpochTrainConfig(epochs=10**20), "epochs=100000000000000000000 is out of range"),
        (lambda: SentimentDataConfig(min_count=2**31), "min_count=2147483648 is out of range"),
        (lambda: OptimizerConfig(weight_decay=float("inf")), "weight_decay=inf must be a finite number"),
        (lambda: ObjectiveConfig(regularizers=(("importance-2", float("inf")),)), "regularizers=inf must be a finite"),
        (lambda: MeshConfig(fsdp=2**40), "fsdp=1099511627776 is out of range"),
        (lambda: ModelConfig(gate_eps=0), "gate_eps=0 must be positive"),
        (lambda: ModelConfig(attention_layers=()), "attention_layers is empty"),
        (lambda: ModelConfig(norm="batch"), "norm='batch' must be one of 'layer', 'rms', 'rms_offset'"),
        (lambda: ModelConfig(ablation="locl"), "ablation='locl' must be one of 'none', 'local', 'global', 'both'"),
        (lambda: ModelConfig(kv_heads=3), "kv_heads=3 must divide n_heads=16; choose one of 1, 2, 4, 8, 16"),
        (lambda: ModelConfig(kv_heads=0), "kv_heads=0 must divide n_heads=16"),
        (lambda: ModelConfig(head_dim=0), "head_dim=0 must be positive, or None"),
        (lambda: ModelConfig(head_dim=2**31 - 1), "n_heads=16 times head_dim=2147483647 must be at most"),
        (lambda: ModelConfig(head_dim=4, k_attention=64), r"k_attention=64 must be below the 64 attention channels"),
        (lambda: ModelConfig(logit_cap=0.0), "logit_cap=0.0 must be positive, or None"),
        (lambda: ModelConfig(attention_scale_width=16), "attention_scale_width=16 needs scale_attention=True"),
        (lambda: ModelConfig(rotary_theta=5e5), "rotary_theta=500000.0 needs positions='rotary'"),
        (lambda: ModelConfig(positions="rotary", rotary_fraction=0.4), "are 3 channels; they turn in pairs"),
        (lambda: ModelConfig(positions="rotary", rotary_fraction=1.5), "rotary_fraction=1.5 must be above 0, at most"),
        (lambda: ModelConfig(positions="rotary", rotary_theta=0.0), "rotary_theta=0.0 must be positive"),
        (lambda: family("qwen"), "no family 'qwen'; did you mean 'qwen2'?"),
        (lambda: family("x"), "no family 'x'; choose one of gpt_neo, gpt2, gpt_neox, llama, qwen2, gemma2"),
        (lambda: TrainConfig(batch_size=6, accumulation_steps=4), "must divide batch_size=6"),
        (lambda: DataConfig(tokenizer="corpus"), "does not fit source='tinystories'"),
        (lambda: MeshConfig(data=0), "mesh.data=0"),
        (lambda: OptimizerConfig(beta2=1.0), r"must be in \[0, 1\)"),
        (lambda: Config(train=TrainConfig(sequence_length=512)), "must not exceed model.context_length=256"),
        (lambda: ObjectiveConfig(importance=-1), "objective.importance=-1 must not be negative"),
        (
            lambda: Config(objective=ObjectiveConfig(regularized_layers=(0, 8))),
            r"objective.regularized_layers=\[8\] must be in 0\.\.7",
        ),
        (
            lambda: Config(
                model=ModelConfig(ablation="none"),
                objective=ObjectiveConfig(interaction=1, regularized_stream="ablated"),
            ),
            "objective.regularized_stream='ablated' needs a gated model; set model.ablation or take 'clean'",
        ),
    ],
)
def test_bad_settings_say_value_limit_and_fix(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("model", {"vocab_size": -1}, "vocab_size=-1 must not be negative"),
        ("model", {"max_length": 0}, "max_length=0 must be positive"),
        ("model", {"d_model": 9, "n_heads": 3}, r"d_model=9 must be even \(sines and cosines"),
        ("model", {"n_layers": 0}, "n_layers=0 must be positive"),
        ("model", {"n_heads": 3}, "n_heads=3 must divide d_model=256; choose one of 1, 2, 4"),
        ("model", {"n_classes": 1}, "n_classes=1 must be at least 2"),
        ("model", {"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ("model", {"padding": "none"}, "padding='none' must be one of 'masked', 'paper'"),
        ("model", {"vmask": 1}, "vmask=1 must be of type bool"),
        ("model", {"vmask_width": 0}, "vmask_width=0 must be positive"),
        ("model", {"ablation": "global"}, "ablation='global' must be one of 'none', 'local'"),
        ("model", {"ablation": "local", "k_neurons": 1024}, "k_neurons=1024 must be below the 1024 neurons"),
        ("objective", {"importance": -0.5}, "objective.importance=-0.5 must not be negative"),
        ("objective", {"interaction": -1}, "objective.interaction=-1.0 must not be negative"),
        ("objective", {"information": -1}, "objective.information=-1.0 must not be negative"),
        ("objective", {"clean": -1}, "objective.clean=-1.0 must not be negative"),
        ("objective", {"ablated": -1}, "objective.ablated=-1.0 must not be negative"),
        ("objective", {"layers": []}, "objective.layers is empty; give at least one layer"),
        ("objective", {"layers": [0, 1]}, r"objective.layers=\[1\] must be in 0\.\.0 for model.n_layers=1"),
        ("objective", {"layers": [-1]}, r"objective.layers=\[-1\] must be in 0\.\.0"),
        ("objective", {"importance_site": "mlp"}, "importance_site='mlp' must be one of 'embedding', 'neurons'"),
        ("objective", {"stream": "ablated"}, "objective.stream='ablated' needs a gated model; set model.ablation="),
        ("objective", {"stream": "all"}, "stream='all' must be one of 'clean', 'ablated', 'both'"),
        ("data", {"source": "yelp"}, "source='yelp' must be one of 'sst2', 'imdb'"),
        ("data", {"vocabulary": "bpe"}, "vocabulary='bpe' must be one of 'words', 'gpt2'"),
        ("data", {"min_count": 0}, "min_count=0 must be positive"),
        ("data", {"balance": "no"}, "balance='no' must be of type bool"),
        ("data", {"split_seed": 0.5}, "split_seed=0.5 must be of type int"),
        ("data", {"path": 3}, "path=3 must be of type str"),
        ("train", {"epochs": 0}, "epochs=0 must be positive"),
        ("train", {"patience": -1}, "patience=-1 must not be negative"),
        ("train", {"batch_size": 0}, "batch_size=0 must be positive"),
        ("train", {"bucket_multiple": -8}, "bucket_multiple=-8 must not be negative"),
        ("train", {"log_every": 0}, "log_every=0 must be positive"),
        ("train", {"keep_last": 0}, "keep_last=0 must be positive"),
        ("train", {"steps": 3}, "EpochTrainConfig has no field 'steps'"),
        ("model", {"vmask_widht": 3}, "no field 'vmask_widht'; did you mean 'vmask_width'"),
    ],
)
def test_bad_settings_of_a_classifier_name_the_field(part, values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_from_dict({"task": "classification", part: values})
    assert "\n" not in str(caught.value)
