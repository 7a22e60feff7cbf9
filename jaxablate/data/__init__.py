"""Text to train on: story files, the embedded corpus, tokenizers, token files, and the batches drawn from them.

Each name is imported when it is first used.
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from jaxablate.data import corpus as corpus
    from jaxablate.data.pipeline import train_batches as train_batches
    from jaxablate.data.pipeline import validation_batches as validation_batches
    from jaxablate.data.pipeline import window_offsets as window_offsets
    from jaxablate.data.preparation import PreparedData as PreparedData
    from jaxablate.data.preparation import prepare as prepare
    from jaxablate.data.token_file import TokenFile as TokenFile
    from jaxablate.data.token_file import open_token_file as open_token_file
    from jaxablate.data.tokenizer import Tokenizer as Tokenizer
    from jaxablate.data.tokenizer import load_tokenizer as load_tokenizer
