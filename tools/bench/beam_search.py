"""The batched beam search against its peers, on the same encoder outputs and weights: hypotheses, errors, time.

Usage:
    asrkit export --model exp/asr --format onnx --out /tmp/onnx       # for sherpa-onnx
    python tools/bench/beam_search.py --model exp/asr --manifest data/test.jsonl.gz --onnx /tmp/onnx
    python tools/bench/beam_search.py --quick

All on one thread of the CPU. torchaudio's search has no topology with one label a frame at most: it has to give a
blank after each label, so that of a model trained otherwise it finds other scores and sometimes other words.
"""

import argparse
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from common import Row, absent, interleaved, load_peers, one_thread, options, report
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asrkit.data.audio import read_cut
from asrkit.data.features import FeatureConfig
from asrkit.data.manifests import load_cuts
from asrkit.export.sherpa import SherpaRecogniser
from asrkit.models.transducer import BLANK, Transducer, TransducerConfig
from asrkit.nn.encoders import EncoderConfig
from asrkit.scoring.wer import align_all, sum_errors
from asrkit.search.beam import BeamSearch
from asrkit.search.recogniser import Recogniser, load
from asrkit.text.tokenizer import char_tokenizer

BATCH = 256  # utterances
RECOGNISED = 64  # utterances recognised together: what the encoder computes then stays in the cache
SHERPA_BATCHES = (1, 16)
SLOW = 256  # utterances for the searches that take one at a time
LINEAR = (50, 100, 200)

Texts = list[str]


@dataclass(frozen=True)
class Task:
    """N utterances, the longest first: samples (S,), encoder outputs (T, D) and what was said, if that is known."""

    samples: list[Tensor]
    encoder_out: list[Tensor]
    refs: list[str]

    def first(self, n: int) -> "Task":
        """Return n of the utterances, or all if there are fewer, from all over the list."""
        step = max(1, len(self.samples) // n)
        return Task(*(items[::step][:n] for items in (self.samples, self.encoder_out, self.refs)))

    @property
    def frames(self) -> int:
        return sum(map(len, self.encoder_out))


def main() -> None:
    arguments = decoding_options(__doc__).parse_args()
    one_thread()
    with torch.inference_mode():
        report("beam_search.py", list(rows(arguments)), arguments)


def decoding_options(description: str) -> argparse.ArgumentParser:
    """Return the options of a benchmark that decodes a manifest."""
    parser = options(description)
    parser.add_argument("--model", type=Path, help="experiment directory; a small random model by default")
    parser.add_argument("--manifest", type=Path, help="what to decode, with its transcripts")
    parser.add_argument("--onnx", type=Path, help="what asrkit export made of the model")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--utterances", type=int, default=200, help="how many of the manifest")
    return parser


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the search alone, from audio to text, and of the cost of more utterances."""
    quick = arguments.quick or not arguments.model
    recogniser = load(arguments.model, arguments.beam) if arguments.model else random_recogniser(arguments.beam)
    task = prepared(recogniser, arguments.manifest, 8 if quick else arguments.utterances)
    seconds = 0.1 if arguments.quick else 10.0
    peers = load_peers("torchaudio", "sherpa_onnx")

    few = task.first(SLOW)
    total = replace(recogniser.search, length_norm=False)  # by which these peers rank
    searches = {
        "asrkit": batched,
        "asrkit, one utterance at a time": partial(batched, size=1),
        "asrkit, one utterance, one frame at a time": one_frame_at_a_time,
        "plain loop": plain_loop,
    }
    if "torchaudio" in peers:
        searches["torchaudio RNNTBeamSearch"] = partial(torchaudio_search, peers["torchaudio"])
    contestants = {name: partial(search, recogniser, total, few) for name, search in searches.items()}
    yield from compared(f"search alone, beam {arguments.beam}", contestants, few, seconds)

    if "sherpa_onnx" in peers and arguments.onnx:
        theirs = SherpaRecogniser(arguments.onnx, recogniser.features, recogniser.tokenizer, arguments.beam)
        contestants = {
            "asrkit": partial(in_batches, transcriber(recogniser), task.samples, RECOGNISED),
            **{
                f"sherpa-onnx, {size} at a time": partial(in_batches, theirs.transcribe, task.samples, size)
                for size in SHERPA_BATCHES
            },
        }
        yield from compared(f"audio to text, beam {arguments.beam}", contestants, task, seconds)
    elif "sherpa_onnx" in peers:
        absent["sherpa-onnx"] = "needs --onnx"
    yield from linear(recogniser, task, seconds)


def compared(work: str, contestants: dict[str, Callable[[], Texts]], task: Task, seconds: float) -> Iterator[Row]:
    """Yield a row for each peer, in processor time a second of audio (frames of 40 ms)."""
    texts = {name: contestant() for name, contestant in contestants.items()}
    audio = 0.04 * task.frames
    times = {name: time / 1000 / audio for name, time in interleaved(contestants, seconds).items()}
    (ours, mine), *others = texts.items()
    for name, theirs in others:
        same = sum(a == b for a, b in zip(mine, theirs, strict=True))
        result = f"WER {wer(task, mine)}, theirs {wer(task, theirs)}; {same} of {len(mine)} texts equal"
        yield Row(work, name, times[ours], times[name], "CPU s / s of audio", result)


def linear(recogniser: Recogniser, task: Task, seconds: float) -> Iterator[Row]:
    """Yield what an utterance costs when there are more of them, beside what it costs among the fewest."""
    copies = Task(
        *(3 * (LINEAR[-1] // len(task.refs) + 1) * items for items in (task.samples, task.encoder_out, task.refs))
    )
    tasks = {str(n): copies.first(n) for n in LINEAR}
    times = interleaved(
        {n: partial(batched, recogniser, recogniser.search, some) for n, some in tasks.items()}, seconds
    )
    costs = {n: times[n] / (0.04 * tasks[n].frames) for n in tasks}
    fewest, *more = costs
    for n in more:
        work = f"search of {n} utterances beside {fewest}"
        yield Row(work, f"asrkit, {fewest}", costs[n], costs[fewest], "CPU ms / s of audio", "linear is 1")


def wer(task: Task, texts: Texts) -> str:
    """Return the word error rate, or a dash where nothing is known of what was said."""
    if not any(task.refs):
        return "-"
    refs, hyps = ({str(i): text for i, text in enumerate(some)} for some in (task.refs, texts))
    return f"{sum_errors(align_all(refs, hyps)).rate:.2f} %"


# What is decoded


def random_recogniser(beam: int) -> Recogniser:
    torch.manual_seed(0)
    tokenizer = char_tokenizer(["abcdefghijklmnopqrstuvwxyz"])
    encoder = EncoderConfig(dim=16, layers=1, heads=2, feedforward_dim=16, subsampling_channels=4)
    model = Transducer(TransducerConfig(encoder, vocab_size=tokenizer.vocab_size, joiner_dim=32)).eval()
    model.joiner.output.weight.data *= 8
    model.joiner.output.bias.data[BLANK] += 2
    return Recogniser(model, FeatureConfig(), tokenizer, beam)


def prepared(recogniser: Recogniser, manifest: Path | None, utterances: int) -> Task:
    """Return `utterances` of the manifest, or of noise, with their encoder outputs."""
    rate = recogniser.features.sampling_rate
    if manifest:
        cuts = sorted(load_cuts(manifest)[:utterances], key=lambda cut: -cut.duration)
        samples = [read_cut(cut, rate) for cut in cuts]
        refs = [" ".join(s.text for s in cut.supervisions) for cut in cuts]
    else:
        samples = [0.1 * torch.randn(rate * (utterances - i) // 2) for i in range(utterances)]
        refs = [""] * utterances
    encoder_out: list[Tensor] = []
    for first in range(0, len(samples), BATCH):
        features, feature_lens = recogniser.fbank.batch(samples[first : first + BATCH])
        out, lens = recogniser.model.encoder(features, feature_lens, 0)
        encoder_out += [row[:length].clone() for row, length in zip(out, lens.tolist(), strict=True)]
    return Task(samples, encoder_out, refs)


# The contestants


def transcriber(recogniser: Recogniser) -> Callable[[list[Tensor]], Texts]:
    def transcribe(samples: list[Tensor]) -> Texts:
        return [result.hyps[0].text for result in recogniser.recognise(samples, [""] * len(samples))]

    return transcribe


def in_batches(transcribe: Callable[[list[Tensor]], Texts], samples: list[Tensor], size: int) -> Texts:
    return [text for first in range(0, len(samples), size) for text in transcribe(samples[first : first + size])]


def batched(recogniser: Recogniser, search: BeamSearch, task: Task, size: int = BATCH) -> Texts:
    def transcribe(encoder_out: list[Tensor]) -> Texts:
        state = search.start(len(encoder_out))
        lens = torch.tensor([len(row) for row in encoder_out])
        search.advance(state, pad_sequence(encoder_out, batch_first=True), lens)
        return [recogniser.tokenizer.decode(paths[0].tokens) for paths in search.hypotheses(state)]

    return in_batches(transcribe, task.encoder_out, size)


def one_frame_at_a_time(recogniser: Recogniser, search: BeamSearch, task: Task) -> Texts:
    """The loop of a search that does not know blocks of frames."""
    loop = copy(search)
    loop._in_blocks = loop._frame_by_frame
    return batched(recogniser, loop, task, 1)


@dataclass(frozen=True)
class Hypothesis:
    tokens: tuple[int, ...]
    score: Tensor  # ()
    projected: Tensor  # (J,)
    state: list[Tensor]  # each (1, …)


def plain_loop(recogniser: Recogniser, search: BeamSearch, task: Task) -> Texts:
    """The usual search with one label a frame at most: one utterance at a time, an object for each hypothesis."""
    return [recogniser.tokenizer.decode(plain_search(recogniser.model, search.beam, out)) for out in task.encoder_out]


def plain_search(model: Transducer, beam: int, encoder_out: Tensor) -> tuple[int, ...]:
    start = Hypothesis((), torch.tensor(0.0), torch.empty(0), model.predictor.start(1))
    hyps = [predicted(model, start, BLANK)]
    for frame in model.joiner.project_encoder(encoder_out):
        log_probs = model.joiner.log_probs(frame, torch.stack([hyp.projected for hyp in hyps]))  # (K, V)
        total = torch.stack([hyp.score for hyp in hyps])[:, None] + log_probs
        scores, index = total.flatten().topk(min(beam, total.numel()))
        merged: dict[tuple[int, ...], Hypothesis] = {}
        for score, place in zip(scores, index.tolist(), strict=True):
            parent, token = hyps[place // total.shape[1]], place % total.shape[1]
            tokens = parent.tokens if token == BLANK else (*parent.tokens, token)
            if tokens in merged:
                score = torch.logaddexp(score, merged[tokens].score)
                merged[tokens] = replace(merged[tokens], score=score)
            else:
                hyp = replace(parent, tokens=tokens, score=score)
                merged[tokens] = hyp if token == BLANK else predicted(model, hyp, token)
        hyps = list(merged.values())
    return max(hyps, key=lambda hyp: float(hyp.score)).tokens


def predicted(model: Transducer, hyp: Hypothesis, token: int) -> Hypothesis:
    """Return the hypothesis after the predictor has seen its last token."""
    out, state = model.predictor(torch.tensor([[token]]), hyp.state)
    return replace(hyp, projected=model.joiner.project_predictor(out[0, 0]), state=state)


def torchaudio_search(torchaudio: ModuleType, recogniser: Recogniser, beam: BeamSearch, task: Task) -> Texts:
    """torchaudio's search with our predictor and joiner; its blank has to be the last of the vocabulary."""
    model, vocab = recogniser.model, recogniser.model.config.vocab_size

    def predict(tokens: Tensor, lens: Tensor, state: list[list[Tensor]] | None) -> tuple[Tensor, Tensor, list]:
        past = model.predictor.start(1) if state is None else [s for (s,) in state]
        out, past = model.predictor((tokens + 1) % vocab, past)
        return model.joiner.project_predictor(out), lens, [[s] for s in past]

    def join(encoder: Tensor, encoder_lens: Tensor, predictor: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = model.joiner.combine(encoder, predictor)[:, :, None]  # (K, 1, 1, V)
        return logits.roll(-1, dims=-1), encoder_lens, lens

    def transcribe(encoder_out: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        return model.joiner.project_encoder(encoder_out), lens

    network = SimpleNamespace(predict=predict, join=join, transcribe=transcribe)
    most = beam.max_symbols if model.config.topology == "regular" else 1
    search = torchaudio.models.RNNTBeamSearch(network, vocab - 1, 1.0, lambda hyp: hyp[3], most)
    texts = []
    for out in task.encoder_out:
        best = search(out, torch.tensor(len(out)), beam.beam)[0]
        texts.append(recogniser.tokenizer.decode([token + 1 for token in best[0][1:]]))
    return texts


if __name__ == "__main__":
    main()
