"""`asrkit lang`: make a lang directory from the training text.

Usage:
    asrkit lang --manifest data/mini/train.jsonl.gz --type bpe --vocab-size 200 --out data/lang
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from asrkit.cli.main import run
from asrkit.errors import InputError


def lang(
    *,
    out: Path,
    manifest: list[Path] = (),  # type: ignore[assignment]
    text: list[Path] = (),  # type: ignore[assignment]
    type: Literal["bpe", "char", "phone"] = "bpe",
    vocab_size: int = 500,
    lexicon: Path | None = None,
    cmudict: Path | None = None,
) -> None:
    """Write `tokens.txt`, and `bpe.model` or `lexicon.txt`, from transcripts and other text.

    Args:
        out: the lang directory.
        manifest: manifests whose transcripts are read.
        text: text files, one sentence a line.
        type: word pieces, characters, or phones.
        vocab_size: number of word pieces, with the blank and the unknown.
        lexicon: `word phone phone …` lines for phones; espeak-ng pronounces the words otherwise.
        cmudict: the CMU dictionary, instead of `lexicon`.
    """
    from asrkit.data.manifests import read_texts
    from asrkit.text import tokenizer

    texts = [sentence for path in (*manifest, *text) for sentence in read_texts(path)]
    words = Counter(word for sentence in texts for word in sentence.split())
    if not words:
        raise InputError("--manifest, --text: no words to make a lang directory from")
    if type == "bpe":
        made: tokenizer.Tokenizer = tokenizer.train_bpe(texts, vocab_size)
    elif type == "char":
        made = tokenizer.char_tokenizer(words)
    else:  # the most frequent word first: phone strings are read as the first word that has them
        made = tokenizer.phone_tokenizer(_pronounce([word for word, _ in words.most_common()], lexicon, cmudict))
    made.save(out)
    tokens = sum(count * len(made.encode(word)) for word, count in words.items())
    print(
        f"{out}: {made.vocab_size} symbols ({type}) from {len(texts)} sentences, {words.total()} words, "
        f"{len(words)} different; {tokens / words.total():.2f} symbols a word"
    )


def _pronounce(words: list[str], lexicon: Path | None, cmudict: Path | None):
    from asrkit.text.lexicon import read_cmudict, read_lexicon, select_words, spell_out

    if lexicon and cmudict:
        raise InputError("--lexicon, --cmudict: give one of the two")
    if lexicon:
        return select_words(read_lexicon(lexicon), words, lexicon)
    if cmudict:
        return select_words(read_cmudict(cmudict), words, cmudict)
    from asrkit.data.espeak import phones

    return spell_out(words, phones)


def main(argv: list[str]) -> None:
    run(lang, argv)
