"""Text to token ids and back: word pieces, characters or phones behind one small interface.

A lang directory holds a tokenizer: `tokens.txt` (`symbol id` lines, as sherpa-onnx reads them) and, for word pieces,
`bpe.model`, for phones, `lexicon.txt`. Copying these files copies the tokenizer.
"""

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.text.lexicon import Lexicon, read_lexicon, write_lexicon

BLANK, UNKNOWN = "<blk>", "<unk>"  # ids 0 and 1 of every tokenizer
WORD_START = "▁"  # U+2581, first character of each symbol that starts a word


class Tokenizer(ABC):
    """Token ids of words; the kinds differ only in how one word is spelt.

    Attributes:
        symbols: V strings, id -> symbol; 0 is the blank, 1 the unknown.
        word_starts: V booleans, whether the symbol starts a word.
    """

    def __init__(self, symbols: Sequence[str]):
        self.symbols = list(symbols)
        self.word_starts = [symbol.startswith(WORD_START) for symbol in symbols]
        self._ids = {symbol: index for index, symbol in enumerate(symbols)}
        self._words: dict[str, list[int]] = {}  # words already encoded

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Ids of a text of words separated by white space, without blanks.

        Raises:
            InputError: a symbol or word that the tokenizer does not know; there is no silent `<unk>`.
        """
        ids: list[int] = []
        for word in text.split():
            if word not in self._words:
                try:
                    self._words[word] = [self._ids[symbol] for symbol in self._spell(word)]
                except KeyError as error:
                    unknown = str(error.args[0]).lstrip(WORD_START) or WORD_START
                    raise InputError(f"'{unknown}' is not known to the tokenizer, in '{text.strip()}'") from None
            ids.extend(self._words[word])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; blanks are left out."""
        return " ".join(word for word, _ in self.words(ids))

    def words(self, ids: Iterable[int]) -> list[tuple[str, range]]:
        """Each word of `ids` with the positions in `ids` of its tokens, so that times can be given to it."""
        spans: list[list[int]] = []
        kept = list(ids)
        for position, index in enumerate(kept):
            if index == 0:
                continue
            if self.word_starts[index] or not spans:
                spans.append([])
            spans[-1].append(position)
        words = [(self._join([self.symbols[kept[i]] for i in span]), range(span[0], span[-1] + 1)) for span in spans]
        return [(word, span) for word, span in words if word]

    def save(self, lang_dir: Path | str) -> None:
        """Write the tokenizer into a directory, in place of the one that may be there.

        Raises:
            InputError: a file cannot be written.
        """
        for path in (Path(lang_dir) / "bpe.model", Path(lang_dir) / "lexicon.txt"):  # their presence tells the kind
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        self._save_model(Path(lang_dir))
        with atomic_write(Path(lang_dir) / "tokens.txt") as out:
            out.writelines(f"{symbol} {index}\n" for index, symbol in enumerate(self.symbols))

    @abstractmethod
    def _spell(self, word: str) -> list[str]:
        """Symbols of one word; a symbol outside `symbols` makes `encode` raise."""

    def _join(self, symbols: list[str]) -> str:
        """The word that `symbols` spell."""
        return "".join(symbols).replace(WORD_START, "")

    def _save_model(self, lang_dir: Path) -> None:
        """Write what is needed beyond `tokens.txt`."""


class BpeTokenizer(Tokenizer):
    """Byte-pair word pieces (Sennrich et al. 2016, arXiv:1508.07909) by sentencepiece; `model` is its model file."""

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        super().__init__([self._processor.id_to_piece(index) for index in range(self._processor.get_piece_size())])

    def _spell(self, word: str) -> list[str]:
        return self._processor.encode(word, out_type=str)

    def _save_model(self, lang_dir: Path) -> None:
        with atomic_write(lang_dir / "bpe.model", "wb") as out:
            out.write(self._model)


class CharTokenizer(Tokenizer):
    """Characters; the first of a word is a symbol of its own ("▁a"), so that its time is the word's."""

    def _spell(self, word: str) -> list[str]:
        return [WORD_START + word[0], *word[1:]]


class PhoneTokenizer(Tokenizer):
    """Phones, the first of a word marked ("▁k").

    A word is spelt by its first pronunciation; a phone string is read as the first word of the lexicon that has it
    among its pronunciations, or as `<unk>`.
    """

    def __init__(self, symbols: Sequence[str], lexicon: Lexicon):
        super().__init__(symbols)
        self.lexicon = lexicon
        self._homophones: dict[tuple[str, ...], str] = {}
        for word, pronunciations in lexicon.items():
            for phones in pronunciations:
                self._homophones.setdefault(phones, word)

    def _spell(self, word: str) -> list[str]:
        if word not in self.lexicon:
            raise KeyError(word)
        first, *others = self.lexicon[word][0]
        return [WORD_START + first, *others]

    def _join(self, symbols: list[str]) -> str:
        phones = (symbols[0].removeprefix(WORD_START), *symbols[1:])
        return self._homophones.get(phones, UNKNOWN)

    def _save_model(self, lang_dir: Path) -> None:
        write_lexicon(self.lexicon, lang_dir / "lexicon.txt")


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Learn word pieces from texts; the same texts give the same model, byte for byte.

    Raises:
        InputError: there is no text, or it cannot be cut into `vocab_size` pieces; says what the text allows.
    """
    model = io.BytesIO()
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError("no text to learn word pieces from")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=1 << 20,  # bytes; longer ones would be dropped without a word
            pad_id=0,
            pad_piece=BLANK,
            unk_id=1,
            unk_piece=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise InputError(f"vocab_size {vocab_size}: {_sentencepiece_reason(str(error))}") from error
    return BpeTokenizer(model.getvalue())


def char_tokenizer(texts: Iterable[str]) -> CharTokenizer:
    """A tokenizer of the characters in `texts`, each at the start and inside of words.

    Raises:
        InputError: there is no text.
    """
    characters = sorted({character for text in texts for character in text if not character.isspace()})
    if not characters:
        raise InputError("no text to take characters from")
    return CharTokenizer([BLANK, UNKNOWN, *(WORD_START + character for character in characters), *characters])


def phone_tokenizer(lexicon: Lexicon) -> PhoneTokenizer:
    """A tokenizer of the phones in `lexicon`, each at the start and inside of words."""
    phones = sorted({phone for pronunciations in lexicon.values() for phones in pronunciations for phone in phones})
    return PhoneTokenizer([BLANK, UNKNOWN, *(WORD_START + phone for phone in phones), *phones], lexicon)


def load_tokenizer(lang_dir: Path | str) -> Tokenizer:
    """Read the tokenizer of a lang directory: word pieces with `bpe.model`, phones with `lexicon.txt`, else characters.

    Raises:
        InputError: a file is missing or damaged, or the files disagree; names the file.
    """
    lang_dir = Path(lang_dir)
    symbols = _read_symbols(lang_dir / "tokens.txt")
    model = lang_dir / "bpe.model"
    if model.exists():
        try:
            tokenizer = BpeTokenizer(model.read_bytes())
        except RuntimeError as error:
            raise InputError(f"{model}: not a sentencepiece model") from error
        if tokenizer.symbols != symbols:
            raise InputError(f"{lang_dir / 'tokens.txt'}: its symbols are not those of bpe.model")
        return tokenizer
    if (lang_dir / "lexicon.txt").exists():
        return PhoneTokenizer(symbols, read_lexicon(lang_dir / "lexicon.txt"))
    return CharTokenizer(symbols)


def copy_tokenizer(lang_dir: Path | str, destination: Path | str) -> None:
    """Copy the tokenizer's files, and no other file of the lang directory."""
    load_tokenizer(lang_dir).save(destination)


def _read_symbols(path: Path) -> list[str]:
    symbols: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    for number, line in enumerate(lines, start=1):
        symbol, _, index = line.rpartition(" ")
        if not symbol or index != str(len(symbols)):
            raise InputError(f"{path}: line {number}: expected 'symbol {len(symbols)}', found '{line}'")
        symbols.append(symbol)
    if symbols[:2] != [BLANK, UNKNOWN]:
        raise InputError(f"{path}: must begin with '{BLANK} 0' and '{UNKNOWN} 1'")
    if len(set(symbols)) != len(symbols):
        raise InputError(f"{path}: the same symbol twice")
    return symbols


def _sentencepiece_reason(message: str) -> str:
    """Say in our words what sentencepiece found wrong with the vocabulary size."""
    if most := re.search(r"<= (\d+)\.", message):
        return f"the text gives at most {most[1]} word pieces"
    if least := re.search(r"(\d+) vs (\d+)\.", message):
        return f"its characters alone need {least[2]}"
    return message
