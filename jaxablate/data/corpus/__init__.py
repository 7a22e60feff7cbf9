"""Embedded story corpus: unlimited small stories from a seeded grammar, with the hidden facts of each on record.

>>> from jaxablate.data import corpus
>>> story = corpus.story(seed=0, index=4)
>>> story.facts.characters[0].name in story.text
True
"""

from jaxablate.data.corpus.facts import LABELS, Character, StoryFacts
from jaxablate.data.corpus.narrator import Handover
from jaxablate.data.corpus.prompts import IOI_LINES, IOIPrompt, ioi_prompts
from jaxablate.data.corpus.story import CORPUS_VERSION, VALID_START, Story, entropy_floor, stories, story, token_stream
from jaxablate.data.corpus.tokenizer import CorpusTokenizer

__all__ = [
    "CORPUS_VERSION", "IOI_LINES", "LABELS", "VALID_START", "Character", "CorpusTokenizer", "Handover", "IOIPrompt",
    "Story", "StoryFacts", "entropy_floor", "ioi_prompts", "stories", "story", "token_stream",
]
