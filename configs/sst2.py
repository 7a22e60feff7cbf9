"""SAFR on the Stanford Sentiment Treebank at the second paper's shape, three seeds of one lambda setting.

    jaxablate train --config sst2 --workdir runs/sst2-l11 --seeds 0 1 2
    jaxablate train --config sst2 --workdir runs/sst2-l00 --seeds 0 1 2 --objective.importance 0 \
        --objective.interaction 0

It reads the PTB trees from data/trees, downloaded where a network allows, or from --data.path. As in the paper, the
larger class of the training sentences is cut to the size of the smaller one, which leaves 6,620 of 6,920;
--data.no-balance keeps all. As in the released code, with padding inside the pooled mean and both regularisers:
--model.padding paper. On two cores of an AMD EPYC (Zen 4) an
epoch takes 11 s (padded to 128: 52 s), and a run ends after 6 to 15 epochs; test accuracy was 0.63 to 0.72.
docs/safr.md has the results.
"""

from jaxablate.config import ClassificationConfig, ClassifierConfig, SentimentDataConfig


def get_config() -> ClassificationConfig:
    """One layer of width 256, VMASK, words that occur twice, both lambdas 1, batches of like length."""
    return ClassificationConfig(
        model=ClassifierConfig(max_length=128),
        data=SentimentDataConfig(source="sst2"),
    )
