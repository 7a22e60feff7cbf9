"""Tokens to train on: story files, the embedded corpus, tokenizers, token files and the batches drawn from them.

Nothing is imported here, so that ``import jaxablate.data`` stays cheap; use the modules: `jaxablate.data.prepare`,
`jaxablate.data.pipeline`, `jaxablate.data.tokenizer`, `jaxablate.data.token_file`, `jaxablate.data.corpus`.
"""
