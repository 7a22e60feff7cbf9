"""A self-ablating model with a vocabulary of its own, trained on story files within a quarter of an hour on CPU.

    jaxablate train --config tinystories_small --workdir runs/small-local-k8
    jaxablate train --config tinystories_small --model.ablation none --workdir runs/small-baseline

It reads data/TinyStories-train.txt and data/TinyStories-valid.txt, or the files named by --data.train-path and
--data.valid-path. The README states the time and the figures of both runs on two CPU cores.
"""

from jaxablate.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """4 layers of width 128, byte-level BPE of 4096 tokens, local hard gates with k = 8."""
    return Config(
        model=ModelConfig(
            vocab_size=4096,
            context_length=256,
            d_model=128,
            n_layers=4,
            n_heads=8,
            position_std=0.05,
            ablation="local",
            k_attention=8,
            k_neurons=8,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50, weight_decay=0.1),
        data=DataConfig(source="tinystories", tokenizer="bpe", bpe_vocab_size=4096),
        train=TrainConfig(
            steps=1500,
            batch_size=8,
            sequence_length=256,
            accumulation_steps=1,
            eval_every=300,
            eval_batches=25,
            checkpoint_every=150,
        ),
    )
