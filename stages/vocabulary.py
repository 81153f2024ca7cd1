"""Which words a small model knows. Loads no torch, so that a command line can warn before anything heavy starts."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from tokenizers import Tokenizer


@functools.lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> tuple[Tokenizer | None, int, tuple[str, ...]]:
    """The tokenizer, its unknown id and its words; None when it splits words into pieces and so knows every word."""
    path = folder / "tokenizer" / "tokenizer.json"
    if not path.is_file():
        return None, -1, ()
    description = json.loads(path.read_text())
    if description["model"]["type"] != "WordLevel":
        return None, -1, ()
    special = {token["content"] for token in description["added_tokens"]}
    vocab, unknown = description["model"]["vocab"], description["model"]["unk_token"]
    words = tuple(sorted(word for word in vocab if word not in special | {unknown} and word[0].isalnum()))
    return Tokenizer.from_file(str(path)), vocab[unknown], words


def vocabulary(folder: Path) -> tuple[str, ...]:
    """Every word of a model with a word-level tokenizer, sorted; empty for other tokenizers."""
    return _tokenizer(Path(folder))[2]


def unknown_words(prompt: str, folder: Path) -> tuple[str, ...]:
    """The words of ``prompt`` the model has never seen, each once, in order."""
    tokenizer, unknown, _ = _tokenizer(Path(folder))
    if tokenizer is None:
        return ()
    encoding = tokenizer.encode(prompt, add_special_tokens=False)
    spans = [span for index, span in zip(encoding.ids, encoding.offsets, strict=True) if index == unknown]
    return tuple(dict.fromkeys(prompt[start:end] for start, end in spans))
