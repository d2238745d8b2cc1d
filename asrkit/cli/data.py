"""`asrkit data`: prepare, validate, describe, compare and convert corpora, and simulate meetings.

Usage:
    asrkit data prepare fsdd data/fsdd --hours 5
    asrkit data prepare folder data/own --tables recordings/train.tsv recordings/test.tsv
    asrkit data validate data/fsdd/train.jsonl.gz data/fsdd/test.jsonl.gz
    asrkit data describe data/fsdd/test.jsonl.gz --lang data/lang
    asrkit data overlap data/fsdd/test.jsonl.gz --against data/fsdd/train.jsonl.gz lm.txt
    asrkit data simulate data/walking --speech data/fsdd/train.jsonl.gz --meetings 4 --simulation.motion walk
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from asrkit.cli.main import run
from asrkit.cli.simulation import simulate_set
from asrkit.data.corpora import folder, fsdd, kaldi, librispeech, librispeech_speakers, mini
from asrkit.data.manifests import load_cuts, read_texts
from asrkit.errors import InputError
from asrkit.progress import progress
from asrkit.text.normalise import Case, has_digits, normalise


def validate(manifests: list[Path]) -> None:
    """Decode all audio and check times, texts and alignments; list every problem.

    Args:
        manifests: manifests to check.
    """
    from asrkit.data.validation import problems

    count = 0
    for manifest in manifests:
        for problem in problems(manifest):
            print(problem)
            count += 1
    if count:
        raise InputError(f"{count} {'problem' if count == 1 else 'problems'} found")


def describe(manifests: list[Path], *, lang: Path | None = None) -> None:
    """Print hours, speakers, words and durations.

    Args:
        manifests: manifests to describe.
        lang: a lang directory; words that its tokenizer does not know are counted.
    """
    from asrkit.data import statistics

    for manifest in manifests:
        found = statistics.describe(load_cuts(manifest, lazy=True), _known_words(lang))
        print(f"{manifest}")
        print(f"  hours       {found.hours:.3f}")
        print(f"  utterances  {found.utterances}")
        print(f"  speakers    {found.speakers}")
        print(f"  words       {found.words}, {found.vocabulary} different")
        percentiles = zip(statistics.PERCENTILES, found.durations, strict=True)
        print(f"  seconds     {', '.join(f'{share}%: {seconds:.2f}' for share, seconds in percentiles)}")
        if lang:
            share = 100 * found.unknown.total() / max(found.words, 1)
            examples = ", ".join(word for word, _ in found.unknown.most_common(8))
            print(f"  unknown     {found.unknown.total()} words ({share:.2f}%){': ' * bool(examples)}{examples}")


def overlap(test: Path, *, against: list[Path], length: int = 8) -> None:
    """List test sentences that are in training or language model text, and long word strings that they share.

    Case and punctuation do not count. A line has the test sentence's number, the file and line of the other text, what
    they share, and the words.

    Args:
        test: manifest or text file.
        against: manifests or text files, gzipped or not.
        length: number of words in a row that count as shared.
    """
    from asrkit.data.overlap import find_overlaps

    if length < 1:
        raise InputError(f"--length {length}: must be positive")
    sentences = [normalise(text) for text in read_texts(test)]
    for path in against:
        touched: dict[bool, set[int]] = {True: set(), False: set()}
        texts = (normalise(text) for text in progress(read_texts(path), f"read {path.name}"))
        for found in find_overlaps(sentences, texts, length):
            kind = "sentence" if found.whole else f"{length} words"
            print(f"{found.test + 1}\t{path}:{found.train + 1}\t{kind}\t{found.words}")
            touched[found.whole].add(found.test)
        print(
            f"{path}: holds {len(touched[True])} of {len(sentences)} test sentences whole, "
            f"and {length} words or more of {len(touched[False] - touched[True])} others",
            file=sys.stderr,
        )


def export_kaldi(manifest: Path, out: Path) -> None:
    """Write a Kaldi data directory.

    Args:
        manifest: manifest to convert; its audio stays where it is.
        out: the data directory.
    """
    kaldi.write_kaldi_directory(load_cuts(manifest), out)


def prepare_kaldi(out: Path, *, data_dirs: list[Path], case: Case = "lower") -> None:
    """Take over Kaldi data directories; each becomes the manifest of its name. Pipes in wav.scp are refused.

    Args:
        out: where the manifests are written.
        data_dirs: directories with wav.scp, text, and perhaps segments and utt2spk.
        case: of the transcripts; punctuation is removed from them.
    """
    kaldi.prepare(out, data_dirs, _normaliser(case))


def prepare_folder(out: Path, *, tables: list[Path], case: Case = "lower") -> None:
    """Take over audio files listed in TSV tables; each becomes the manifest of its name.

    Args:
        out: where the manifests are written.
        tables: TSV files with the header path, text, and perhaps speaker, start, end (seconds).
        case: of the transcripts; punctuation is removed from them.
    """
    folder.prepare(out, tables, _normaliser(case))


def _normaliser(case: Case) -> Callable[[str], str]:
    def checked(text: str) -> str:
        if has_digits(text):
            raise InputError(f"digits in '{text.strip()}': write numbers as they are spoken")
        return normalise(text, case)

    return checked


def _known_words(lang: Path | None) -> Callable[[str], bool]:
    from asrkit.text.tokenizer import Tokenizer, load_tokenizer

    def knows(tokenizer: Tokenizer, word: str) -> bool:
        try:
            return bool(tokenizer.encode(word))
        except InputError:
            return False

    return partial(knows, load_tokenizer(lang)) if lang else lambda word: True


CORPORA = {
    "mini": mini.prepare,
    "fsdd": fsdd.prepare,
    "librispeech": librispeech.prepare,
    "librispeech_speakers": librispeech_speakers.prepare,
    "kaldi": prepare_kaldi,
    "folder": prepare_folder,
}


def main(argv: list[str]) -> None:
    commands = {
        "validate": validate,
        "describe": describe,
        "overlap": overlap,
        "export-kaldi": export_kaldi,
        "simulate": simulate_set,
        "prepare": {"_help": "make the manifests of a corpus", **CORPORA},
    }
    run(commands, argv)
