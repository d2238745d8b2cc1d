"""Batches of sentences: all of them once an epoch, the same whenever asked, shared out, and bad text."""

import logging

import pytest
import torch

from asrkit.data.sentences import WORDS_AN_HOUR, SentenceBatchingConfig, SentenceLoader
from asrkit.errors import InputError

TEXTS = ["ab " * (1 + n % 7) + "c" for n in range(60)]


def encode(text: str) -> list[int]:
    if "?" in text:
        raise InputError(f"'?' is not known to the tokenizer, in '{text}'")
    return [ord(character) - ord("a") + 1 for character in text if character != " "]


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "text"
    file.write_text("\n".join(TEXTS))
    return file


def loader(file, **options) -> SentenceLoader:
    return SentenceLoader([file], encode, SentenceBatchingConfig(max_tokens=64, max_length=40), **options)


def contents(batches) -> list[list[int]]:
    return [batch.tokens[i, :n].tolist() for batch in batches for i, n in enumerate(batch.token_lens)]


def test_an_epoch_is_all_of_the_text(file):
    batches = list(loader(file).epoch(3))
    assert sorted(contents(batches)) == sorted(map(encode, TEXTS))
    assert sum(batch.hours for batch in batches) == pytest.approx(loader(file).hours)
    assert loader(file).hours == pytest.approx(sum(len(text.split()) for text in TEXTS) / WORDS_AN_HOUR)
    for batch in batches:
        assert batch.tokens.numel() <= 64 and batch.tokens.shape[1] % 4 == 0
        assert batch.tokens.shape[1] - batch.token_lens.min() < 4
        assert len(batch.cuts) == len(batch.tokens)


def test_epochs_differ_but_repeat(file):
    data = loader(file)
    first, again, second = (contents(data.epoch(number)) for number in (0, 0, 1))
    assert first == again != second
    assert contents(loader(file, seed=1).epoch(0)) != first
    assert contents(data.epoch(0, skip=2)) == contents(list(data.epoch(0))[2:])
    fixed = loader(file, shuffle=False)
    assert contents(fixed.epoch(0)) == contents(fixed.epoch(1))


def test_processes_share_an_epoch(file):
    parts = [list(loader(file, rank=rank, world_size=3).epoch(0)) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(sum(map(contents, parts), [])) == sorted(map(encode, TEXTS))


def test_what_cannot_be_spelled_or_is_too_long_is_left_out(tmp_path, caplog):
    (tmp_path / "text").write_text("ab\n\nwhat?\n" + "a" * 41 + "\nwho?\n")
    with caplog.at_level(logging.WARNING):
        data = loader(tmp_path / "text")
    assert contents(data.epoch(0)) == [[1, 2]]
    assert "2 of 4 sentences are left out; the first is " in caplog.text
    assert f"{tmp_path}/text: line 3: '?' is not known to the tokenizer" in caplog.text


def test_no_text_is_one_line(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="empty: no text"):
        loader(tmp_path / "empty")
    (tmp_path / "strange").write_text("?\n")
    with pytest.raises(InputError, match="strange: line 1: '\\?' is not known"):
        loader(tmp_path / "strange")
    (tmp_path / "long").write_text("a" * 41)
    with pytest.raises(InputError, match="long: no sentence of at most 40 tokens"):
        loader(tmp_path / "long")
    with pytest.raises(InputError, match="none: No such file"):
        loader(tmp_path / "none")


def test_a_batch_moves_as_a_whole(file):
    batch = next(loader(file).epoch(0)).to("cpu")
    assert batch.tokens.dtype == torch.int64 and batch.hours > 0
