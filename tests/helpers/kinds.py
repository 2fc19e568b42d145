"""Tokenizers of every kind that matters, made on the spot from the built-in facts."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from helpers.small import VOCABULARY, corpus_of_texts

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def _byte_level(split=None, normalizer=None) -> Tokenizer:
    """Byte-level BPE; `split` is how the text is cut first, GPT-2's own way by default."""
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    cut = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, level])
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(corpus_of_texts(), trainer)
    return made


def _sentencepiece() -> Tokenizer:
    """BPE over ▁ for spaces, with bytes for characters that it does not know, as Llama 2 has it."""
    taught = Tokenizer(models.BPE())
    taught.pre_tokenizer = pre_tokenizers.Metaspace()
    taught.train_from_iterator(corpus_of_texts(), trainers.BpeTrainer(vocab_size=VOCABULARY - len(BYTES) - 3))
    model = json.loads(taught.to_str())["model"]
    words = dict.fromkeys([*SPECIAL, *BYTES, *sorted(model["vocab"], key=model["vocab"].get)])
    merges = [tuple(pair) for pair in model["merges"]]
    bpe = models.BPE({word: place for place, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    made = Tokenizer(bpe)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


def _prepending() -> Tokenizer:
    made = _sentencepiece()
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def _metaspace() -> Tokenizer:
    made = _sentencepiece()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, unk_token="<unk>")
    made.train_from_iterator(corpus_of_texts(), trainer)
    return made


def _padding_and_truncating() -> Tokenizer:
    made = _byte_level()
    made.enable_padding(direction="left", pad_token="<unk>", length=64)
    made.enable_truncation(4)
    return made


def _with_bos(made: Tokenizer) -> Tokenizer:
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.post_processor = template
    return made


MAKERS = {
    "gpt2": _byte_level,
    "llama3": lambda: _with_bos(_byte_level(LLAMA_3)),
    "qwen": lambda: _byte_level(QWEN, normalizers.NFC()),
    "llama2": lambda: _with_bos(_prepending()),
    "prepend-no-bos": _prepending,
    "metaspace": lambda: _with_bos(_metaspace()),
    "unigram": _unigram,
    "padding-truncation": _padding_and_truncating,
}
KINDS = sorted(MAKERS)


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=MAKERS[kind](), unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
