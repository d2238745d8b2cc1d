"""`asrkit plot`: pictures of experiments.

Usage:
    asrkit plot curve --exp exp/asr --out pictures/curve.png
    asrkit plot alignment --cuts data/mini/test.jsonl.gz --hyps exp/asr/test/nbest.jsonl --out pictures/alignment.png
    asrkit plot latency exp/asr/test exp/asr/test_chunk8 exp/asr/test_chunk32 --out pictures/latency.png
    asrkit plot timeline --refs ref.rttm --hyps hyp.rttm --found_tracks tracks.jsonl --out pictures/timeline.png
    asrkit plot der exp/vbx/still exp/vbx/walk exp/kalman/still exp/kalman/walk --out pictures/der.png
"""

import json
from pathlib import Path
from typing import Any

from asrkit.cli.main import run
from asrkit.data.formats import read_nbest
from asrkit.errors import InputError
from asrkit.types import NBest, Word


def curve(*, exp: Path, out: Path) -> None:
    """Draw the losses and the learning rate of a training run over hours of audio.

    Args:
        exp: experiment directory with log.jsonl.
        out: PNG file to write.
    """
    from asrkit.scoring.pictures import learning_curve, save_picture

    save_picture(learning_curve(_read_log(exp / "log.jsonl")), out)
    print(out)


def alignment(*, cuts: Path, hyps: Path, out: Path, utterance: str | None = None) -> None:
    """Draw a spectrogram with the reference words above and the hypothesis' tokens at their emission times below.

    Args:
        cuts: manifest with word times.
        hyps: nbest.jsonl with token times.
        out: PNG file to write.
        utterance: which one to draw; the first of the hypotheses by default.
    """
    from asrkit.data.audio import read_cut
    from asrkit.data.features import FRAME_SHIFT, HIGH_FREQUENCY_MARGIN, LOW_FREQUENCY, Fbank, FeatureConfig
    from asrkit.data.manifests import load_cuts
    from asrkit.scoring import pictures

    nbest = _find(hyps, utterance)
    cut = next((cut for cut in load_cuts(cuts, lazy=True) if cut.id == nbest.utterance), None)
    if cut is None:
        raise InputError(f"{cuts}: no utterance '{nbest.utterance}'")
    config = FeatureConfig(sampling_rate=min(FeatureConfig.sampling_rate, cut.sampling_rate))
    samples = read_cut(cut, config.sampling_rate)
    items = (cut.supervisions[0].alignment or {}).get("word", ())
    figure = pictures.alignment(
        features=Fbank(config)(samples).numpy(),
        frame_shift=FRAME_SHIFT,
        words=[Word(item.symbol, item.start, item.end) for item in items],
        hyp=nbest.hyps[0],
        title=f"{cut.id}: {cut.supervisions[0].text}",
        band=(LOW_FREQUENCY, config.sampling_rate / 2 - HIGH_FREQUENCY_MARGIN),
    )
    pictures.save_picture(figure, out)
    print(out)


def latency(folders: list[Path], *, out: Path) -> None:
    """Draw the word error rate over the delay of words, a point a chunk size and a line a test set.

    Args:
        folders: scored sets, each with score.json and decode.json; those of whole utterances become lines across.
        out: PNG file to write.
    """
    from asrkit.data.features import FRAME_SHIFT, SUBSAMPLING
    from asrkit.scoring.pictures import latency_curves, save_picture
    from asrkit.scoring.results import Row, read_measures

    measures = read_measures({str(folder): Row(folder.name, str(folder)) for folder in folders}, Path())
    streamed: dict[str, list[tuple[float, float, dict]]] = {}
    whole: dict[str, float] = {}
    for measure in measures.values():
        name = Path(measure["references"]).name.removesuffix(".gz").removesuffix(".jsonl")
        if delay := measure.get("latency", {}).get("emission"):
            chunk = measure["decode"]["chunk_size"] * SUBSAMPLING * FRAME_SHIFT
            streamed.setdefault(name, []).append((chunk, measure["wer"], delay))
        else:
            whole[name] = measure["wer"]
    if not streamed:
        raise InputError(f"{folders[0]}: no latency in its score.json, nor in any other")
    save_picture(latency_curves(streamed, whole), out)
    print(out)


def timeline(
    *,
    refs: Path,
    hyps: Path,
    out: Path,
    recording: str | None = None,
    tracks: Path | None = None,
    found_tracks: Path | None = None,
    observations: Path | None = None,
) -> None:
    """Draw who spoke when, in the reference and as found, and where, over one recording.

    Args:
        refs: references, as of `asrkit der`.
        hyps: hypotheses, as of `asrkit der`.
        out: PNG file to write.
        recording: which one to draw; the first of the references by default.
        tracks: tracks.jsonl with the true azimuths of the speakers.
        found_tracks: tracks.jsonl with the azimuths that were found.
        observations: what was seen of the recording, as `asrkit diarise` keeps it: its azimuths are drawn as dots.
    """
    from asrkit.cli.der import read_meetings
    from asrkit.data.formats import read_tracks
    from asrkit.diarisation.observations import load_observations
    from asrkit.scoring.diarisation import merge, score_meeting
    from asrkit.scoring.pictures import save_picture, speaker_timeline

    truth, guess = read_meetings([refs]), read_meetings([hyps])
    name = recording or next(iter(truth), None)
    if name not in truth:
        raise InputError(f"{refs}: no recording '{name}'" if name else f"{refs}: no segments")
    segments = merge(truth[name]), merge(guess.get(name, []))
    matches = score_meeting(name, *segments).matches
    found, true = (read_tracks(file).get(name) if file else None for file in (found_tracks, tracks))
    observed = None
    if observations:
        seen = load_observations(observations)
        observed = (seen.starts + seen.ends) / 2, seen.azimuths
    save_picture(speaker_timeline(*segments, matches, found, true, observed), out)
    print(out)


def der(folders: list[Path], *, out: Path) -> None:
    """Draw the diarisation error rates of methods, a colour each, under several conditions, with their 95% intervals.

    Args:
        folders: METHOD/CONDITION, each with score.json of `asrkit der`; drawn in this order.
        out: PNG file to write.
    """
    from asrkit.scoring.pictures import condition_bars, save_picture
    from asrkit.scoring.results import Row, read_measures

    measures = read_measures({str(folder): Row(folder.name, str(folder)) for folder in folders}, Path())
    rates: dict[str, dict[str, tuple[float, tuple[float, float] | None]]] = {}
    for folder in folders:
        measure = measures[str(folder)]
        if measure.get("der") is None:
            raise InputError(f"{folder / 'score.json'}: no diarisation error rate")
        rates.setdefault(folder.parent.name, {})[folder.name] = (measure["der"], measure["interval"])
    save_picture(condition_bars(rates), out)
    print(out)


def _find(hyps: Path, utterance: str | None) -> NBest:
    for nbest in read_nbest(hyps):
        if nbest.hyps and utterance in (None, nbest.utterance):
            return nbest
    raise InputError(f"{hyps}: no hypothesis of utterance '{utterance}'" if utterance else f"{hyps}: no hypotheses")


def _read_log(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["split"], record["hours"], record["loss"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file}: line {number}: not a training record") from error
        records.append(record)
    if not records:
        raise InputError(f"{file}: no records")
    return records


def main(argv: list[str]) -> None:
    run({"curve": curve, "alignment": alignment, "latency": latency, "timeline": timeline, "der": der}, argv)
