"""The paper's model: 8 layers of width 128, GPT-2's vocabulary, 400,000 steps on TinyStories (Ferrao et al. 2025).

    jaxablate train --config tinystories --workdir runs/local-k8
    jaxablate train --config tinystories --model.k-attention 4 --model.k-neurons 4 --workdir runs/local-k4
    jaxablate train --config tinystories --model.ablation global --workdir runs/global-k8
    jaxablate train --config tinystories --model.ablation none --workdir runs/baseline

It reads data/TinyStories-train.txt and data/TinyStories-valid.txt, which it downloads where a network allows, or the
files named by --data.train-path and --data.valid-path.

Time: not yet run to its end. A run sees 2.46 billion tokens (24 x 256 a step); at the about 1,000 tokens/s of two CPU
cores that is four weeks. Take an accelerator, or fewer --train.steps: the learning rate falls to 0 over as many as
there are.

Expected: the paper's validation perplexity of the clean stream, one run a row, its best of 1 to 3:

    k                   8      4      2      1
    local            6.47   6.58   6.55   6.58
    global           6.97   6.73   6.66   6.49        baseline 5.73
"""

from jaxablate.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """The settings stored with the authors' runs of October 2024; those of the published rows are on record nowhere."""
    return Config(
        model=ModelConfig(
            vocab_size=50257,
            context_length=256,
            d_model=128,
            n_layers=8,
            n_heads=16,
            ablation="local",
            k_attention=8,
            k_neurons=8,
            gate="hard",
            temperature_attention=1.0,
            temperature_neurons=1.0,
        ),
        objective=ObjectiveConfig(clean=0.5, ablated=0.5, reconstruction=0.0),
        optimizer=OptimizerConfig(learning_rate=1.4e-3, schedule="cosine", weight_decay=0.0, clip_norm=1.0),
        data=DataConfig(source="tinystories", tokenizer="gpt2"),
        train=TrainConfig(
            steps=400_000, batch_size=24, sequence_length=256, eval_every=2000, eval_batches=50, checkpoint_every=2000
        ),
    )
