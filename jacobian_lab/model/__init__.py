"""The model: all that knows transformers, from finding a file to a row of tokens.

Here live architectures, loading, tokens, chat templates, contexts and corpora. Nothing here differentiates or edits;
whoever needs another architecture or another kind of tokenizer changes this package alone.
"""
