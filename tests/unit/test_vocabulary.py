"""Words the small model has never seen are named, before anything heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stages.vocabulary import unknown_words, vocabulary
from tests.tiny import WORDS, checkpoint


def test_the_vocabulary_is_the_tokenizers_words_without_its_special_ones() -> None:
    assert vocabulary(checkpoint()) == tuple(sorted(WORDS))


def test_known_words_are_not_named() -> None:
    assert unknown_words("a red circle moves left", checkpoint()) == ()


def test_unknown_words_are_named_once_and_in_order() -> None:
    assert unknown_words("a zebra chases a red dragon and a zebra", checkpoint()) == ("zebra", "chases", "dragon", "and")


def test_a_tokenizer_of_word_pieces_knows_every_word(tmp_path: Path) -> None:
    description = json.loads((checkpoint() / "tokenizer" / "tokenizer.json").read_text())
    description["model"]["type"] = "Unigram"
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(description))
    assert unknown_words("zebra", tmp_path) == ()
    assert unknown_words("zebra", tmp_path / "nothing here") == ()


def test_no_torch_is_loaded_for_it() -> None:
    code = "import sys, stages.vocabulary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
