"""The corpus `mini`: English spoken by espeak-ng, from grammars of our own, with exact word and phone times.

It needs no download, an hour of speech costs seconds, and the same options give the same bytes.
"""

import json
import multiprocessing
import os
import random
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count, cycle, islice, takewhile
from pathlib import Path

from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem

from asrkit.data import espeak
from asrkit.data.corpora.mini_grammar import DOMAINS, sample_sentence
from asrkit.data.corpora.mini_speech import SAMPLING_RATE, VARIANTS, Speaker, Task, Utterance, make_speakers, speak_all
from asrkit.data.manifests import save_cuts
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.progress import progress, progress_bar

_CHUNK = 32  # utterances that a worker speaks at a time
_MAX_TRIES = 1000  # sentences drawn in search of one that is free


def prepare(
    out: Path,
    hours: float = 6.0,
    domains: Sequence[str] = DOMAINS,
    random_share: float = 0.5,
    voices: int = 110,
    accents: Sequence[str] = ("en-us", "en-gb"),
    snr: float | None = None,
    test_utterances: int = 400,
    text_sentences: int = 5000,
    seed: int = 0,
    jobs: int | None = None,
) -> None:
    """Speak the corpus `mini` into the folder `out`: manifests, audio at 16 kHz, and texts for language models.

    | set         | sentences             | voices                         |
    |-------------|-----------------------|--------------------------------|
    | train       | of domains and random | training voices                |
    | dev         | of domains            | half training, half unseen     |
    | test_seen   | of domains            | training voices                |
    | test_unseen | of domains            | unseen in train and in dev     |

    Unseen voices are other variants of espeak-ng, with a pitch and a rate of their own. No sentence of dev, test_seen
    or test_unseen comes twice, or in train, or in `text/<domain>.txt`. Each supervision has the `custom` fields
    `domain` and `accent`, and the alignments `word` and `phone` (IPA without stress). More hours extend the training
    set of fewer. If `out` holds the finished corpus of the same options, nothing is done.

    Args:
        out: the folder to fill; the manifests name the audio in it by this path as it is given.
        hours: hours of training speech.
        domains: text domains of all sets.
        random_share: share of the training utterances that are random strings of the whole vocabulary.
        voices: number of training voices.
        accents: of en-us, en-gb, en-gb-scotland, en-gb-x-rp, en-gb-x-gbclan, en-gb-x-gbcwmd, en-us-nyc, en-029.
        snr: signal-to-noise ratio in dB of white, pink or babble noise, in all sets; none by default.
        test_utterances: utterances in each of dev, test_seen and test_unseen.
        text_sentences: lines in the text of each domain.
        seed: of all that is drawn.
        jobs: processes; by default one for each core.

    Raises:
        InputError: a wrong option, `out` holds something else, the disk is full, or espeak-ng is not installed.
    """
    options = dict(
        hours=hours,
        domains=list(domains),
        random_share=random_share,
        voices=voices,
        accents=list(accents),
        snr=snr,
        test_utterances=test_utterances,
        text_sentences=text_sentences,
        seed=seed,
    )
    _check(options)
    out = Path(out)
    if not _begin(out, options):
        return

    train_speakers = make_speakers(VARIANTS["train"], accents, voices)
    dev_speakers, unseen_speakers = (
        make_speakers(VARIANTS[name], accents, len(VARIANTS[name]) * len(accents)) for name in ("dev", "test_unseen")
    )
    test_speakers = {
        "dev": [speaker for pair in zip(train_speakers, cycle(dev_speakers), strict=False) for speaker in pair],
        "test_seen": train_speakers,
        "test_unseen": unseen_speakers,
    }
    make_task = partial(Task, snr=snr, babblers=train_speakers)
    held_out: set[tuple[str, ...]] = set()
    jobs = jobs or os.cpu_count() or 1
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for name, speakers in test_speakers.items():
            tasks = _test_tasks(out, name, test_utterances, domains, speakers, held_out, make_task, seed)
            cuts = _speak(pool, jobs, iter(tasks))
            save_cuts(progress(cuts, f"mini {name}", total=len(tasks)), out / f"{name}.jsonl.gz")
        tasks = _train_tasks(out, domains, random_share, train_speakers, held_out, make_task, seed)
        save_cuts(_speak_hours(pool, jobs, tasks, hours), out / "train.jsonl.gz")
    _write_texts(out, text_sentences, domains, held_out, seed)
    _write_state(out, options, finished=True)


def _check(options: dict) -> None:
    for name in ("hours", "domains", "voices", "accents", "test_utterances"):
        value = options[name]
        if (len(value) if isinstance(value, list) else value) <= 0:
            raise InputError(f"--{name} {value}: there must be some")
    for domain in options["domains"]:
        if domain not in DOMAINS:
            raise InputError(f"--domains: no domain {domain}; there are {', '.join(DOMAINS)}")
    for accent in options["accents"]:
        if accent not in espeak.ACCENTS:
            raise InputError(f"--accents: no accent {accent}; there are {', '.join(espeak.ACCENTS)}")
    if not 0 <= options["random_share"] <= 1:
        raise InputError(f"--random_share {options['random_share']}: must be between 0 and 1")
    espeak.phones("hello")  # is it installed?


def _begin(out: Path, options: dict) -> bool:
    """Clear what an unfinished or different preparation has left; false if there is nothing to do."""
    state = out / "mini.json"
    if state.exists():
        if json.loads(state.read_text()) == {**options, "finished": True}:
            return False
    elif (out / "audio").exists():
        raise InputError(f"{out}: has a folder 'audio' that is not of the corpus mini")
    _write_state(out, options, finished=False)
    for folder in ("audio", "text"):
        shutil.rmtree(out / folder, ignore_errors=True)
    return True


def _write_state(out: Path, options: dict, finished: bool) -> None:
    with atomic_write(out / "mini.json") as file:
        json.dump({**options, "finished": finished}, file, indent=1)


def _write_texts(out: Path, number: int, domains: Sequence[str], held_out: set[tuple[str, ...]], seed: int) -> None:
    for domain in domains:
        rng = random.Random(f"{seed} text {domain}")
        with atomic_write(out / "text" / f"{domain}.txt") as file:
            for _ in range(number):
                file.write(" ".join(_free_sentence(domain, rng, held_out)) + "\n")


def _free_sentence(domain: str, rng: random.Random, taken: set[tuple[str, ...]]) -> list[str]:
    for _ in range(_MAX_TRIES):
        words = sample_sentence(domain, rng)
        if tuple(words) not in taken:
            return words
    raise InputError(f"--test_utterances: the domain {domain} has too few sentences")


def _test_tasks(
    out: Path,
    name: str,
    number: int,
    domains: Sequence[str],
    speakers: Sequence[Speaker],
    held_out: set[tuple[str, ...]],
    make_task: Callable[..., Task],
    seed: int,
) -> list[Task]:
    """Every domain and every speaker equally often; adds the sentences to `held_out`."""
    rng = random.Random(f"{seed} {name}")
    tasks = []
    for index, domain, speaker in zip(range(number), cycle(domains), cycle(speakers), strict=False):
        words = _free_sentence(domain, rng, held_out)
        held_out.add(tuple(words))
        wav = out / "audio" / name / f"{name}-{index:05d}.wav"
        tasks.append(make_task(wav, domain, words, speaker, rng.getrandbits(31)))
    return tasks


def _train_tasks(
    out: Path,
    domains: Sequence[str],
    random_share: float,
    speakers: Sequence[Speaker],
    held_out: set[tuple[str, ...]],
    make_task: Callable[..., Task],
    seed: int,
) -> Iterator[Task]:
    """Without end."""
    rng = random.Random(f"{seed} train")
    for index in count():
        domain = "random" if rng.random() < random_share else rng.choice(domains)
        words = _free_sentence(domain, rng, held_out)
        wav = out / "audio" / "train" / f"{index // 1000:04d}" / f"train-{index:07d}.wav"
        yield make_task(wav, domain, words, rng.choice(speakers), rng.getrandbits(31))


def _speak_hours(pool: ProcessPoolExecutor, jobs: int, tasks: Iterator[Task], hours: float) -> Iterator[MonoCut]:
    missing = 3600 * hours
    tasks = takewhile(lambda _: missing > 0, tasks)
    with progress_bar(round(missing), "mini train", unit="s of speech") as bar:
        for cut in _speak(pool, jobs, tasks):
            if missing > 0:
                yield cut
                bar.update(round(cut.duration))
            else:  # spoken ahead of need
                Path(cut.recording.sources[0].source).unlink()
            missing -= cut.duration


def _speak(pool: ProcessPoolExecutor, jobs: int, tasks: Iterator[Task]) -> Iterator[MonoCut]:
    """Cuts in the order of `tasks`, of which only a few are taken ahead."""
    pending = deque()
    while True:
        while len(pending) < 2 * jobs and (chunk := list(islice(tasks, _CHUNK))):
            pending.append((chunk, pool.submit(speak_all, chunk)))
        if not pending:
            return
        chunk, future = pending.popleft()
        yield from map(_cut, chunk, future.result())


def _cut(task: Task, utterance: Utterance) -> MonoCut:
    name = task.wav.stem
    duration = utterance.num_samples / SAMPLING_RATE
    supervision = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=duration,
        text=" ".join(task.words),
        language="English",
        speaker=task.speaker.id,
        gender=task.speaker.gender,
        custom={"domain": task.domain, "accent": task.speaker.voice.accent},
        alignment={"word": _items(utterance.words), "phone": _items(utterance.phones)},
    )
    recording = Recording(
        id=name,
        sources=[AudioSource("file", [0], str(task.wav))],
        sampling_rate=SAMPLING_RATE,
        num_samples=utterance.num_samples,
        duration=duration,
    )
    return MonoCut(name, start=0.0, duration=duration, channel=0, recording=recording, supervisions=[supervision])


def _items(intervals: list[espeak.Interval]) -> list[AlignmentItem]:
    return [AlignmentItem(symbol, round(start, 4), round(end - start, 4)) for symbol, start, end in intervals]
