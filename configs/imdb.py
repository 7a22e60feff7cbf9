"""SAFR on the Large Movie Review Dataset at the second paper's shape.

    jaxablate train --config imdb --workdir runs/imdb-l11
    jaxablate train --config imdb --workdir runs/imdb-l00 --objective.importance 0 --objective.interaction 0

It reads data/aclImdb_v1.tar.gz, downloaded where a network allows, or the archive or folder named by --data.path.
Reviews are cut to 256 words. On one core of an AMD EPYC (Zen 4), shared with other work, an epoch took about a quarter
of an hour. docs/safr.md has the results.
"""

from jaxablate.config import ClassificationConfig, ClassifierConfig, EpochTrainConfig, SentimentDataConfig


def get_config() -> ClassificationConfig:
    """One layer of width 256, VMASK, words that occur twice, both lambdas 1, batches of like length."""
    return ClassificationConfig(
        model=ClassifierConfig(max_length=256),
        data=SentimentDataConfig(source="imdb"),
        train=EpochTrainConfig(bucket_multiple=32),
    )
