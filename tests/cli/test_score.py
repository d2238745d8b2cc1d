import gzip
import json

import pytest
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem

from asrkit.cli.main import main
from asrkit.data.formats import write_nbest
from asrkit.data.manifests import save_cuts
from asrkit.types import Hypothesis, NBest, Word

REFS = {"u1": ("the cat sat", "ann"), "u2": ("on the mat", "bob"), "u3": ("yes", "bob")}


def cut(utterance, text, speaker, timed=False):
    recording = Recording(utterance, [AudioSource("file", [0], f"{utterance}.wav")], 16000, 16000, 1.0)
    supervision = SupervisionSegment(
        utterance, utterance, 0.0, 1.0, text=text, speaker=speaker, custom={"domain": "home"}
    )
    if timed:
        items = [AlignmentItem(word, 0.1 * i, 0.1) for i, word in enumerate(text.split())]
        supervision = supervision.with_alignment("word", items)
    return MonoCut(utterance, 0.0, 1.0, 0, supervisions=[supervision], recording=recording)


@pytest.fixture
def folder(tmp_path):
    """References as a manifest and as Kaldi text, hypotheses as N-best lists and as text."""
    with gzip.open(tmp_path / "refs.jsonl.gz", "wt") as file:
        for utterance, (text, speaker) in REFS.items():
            file.write(json.dumps(cut(utterance, text, speaker).to_dict()) + "\n")
    (tmp_path / "refs").write_text("".join(f"{utterance} {text}\n" for utterance, (text, _) in REFS.items()))
    hyps = {"u1": "the bat sat", "u2": "on the mat", "u3": "yes"}
    (tmp_path / "hyps").write_text("".join(f"{utterance} {text}\n" for utterance, text in hyps.items()))
    write_nbest((nbest(utterance, text) for utterance, text in hyps.items()), tmp_path / "nbest.jsonl")
    return tmp_path


def nbest(utterance, text, confidences=None):
    words = text.split()
    words = tuple(
        Word(word, 0.0, 0.1, value) for word, value in zip(words, confidences or [None] * len(words), strict=True)
    )
    return NBest(utterance, 1.0, (Hypothesis((), (), words, -1.0), Hypothesis((), (), (), -2.0)))


def score(folder, refs="refs.jsonl.gz", hyps="nbest.jsonl", *more):
    return main(["score", "--refs", f"{folder}/{refs}", "--hyps", f"{folder}/{hyps}", "--out", f"{folder}/out", *more])


def test_score_of_a_manifest(folder, capsys):
    assert score(folder, "refs.jsonl.gz", "nbest.jsonl", "--by", "speaker", "domain") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["%WER 14.29 [ 1 / 7, 0 ins, 0 del, 1 sub ]", "%SER 33.33 [ 1 / 3 ]"]
    figures = json.loads((folder / "out" / "score.json").read_text())
    assert figures["wer"] == pytest.approx(100 / 7) and figures["wer_interval"][0] <= figures["wer"]
    assert figures["first_word"]["errors"] == 0 and figures["other_words"]["errors"] == 1
    assert figures["by"]["speaker"]["ann"]["wer"] == pytest.approx(100 / 3)
    assert figures["by"]["speaker"]["bob"]["errors"] == 0 and figures["by"]["domain"]["home"]["words"] == 7
    assert figures["confusions"]["substitutions"] == [["cat", "bat", 1]]
    assert "  hyp  the  bat  sat\n" in (folder / "out" / "alignments.txt").read_text()


def test_text_scores_as_manifest_and_nbest_do(folder):
    assert score(folder) == 0
    first = json.loads((folder / "out" / "score.json").read_text())
    assert score(folder, "refs", "hyps") == 0
    second = json.loads((folder / "out" / "score.json").read_text())
    for name in ("references", "hypotheses", "command"):
        first.pop(name), second.pop(name)
    assert first == second


def test_missing_utterances_are_deletions_and_reported(folder, capsys):
    (folder / "hyps").write_text("u1 the cat sat\nu3 yes\n")
    assert score(folder, "refs", "hyps") == 0
    output = capsys.readouterr()
    assert "[ 3 / 7, 0 ins, 3 del, 0 sub ]" in output.out
    assert "1 of 3 utterances are missing" in output.err and "u2" in output.err
    assert json.loads((folder / "out" / "score.json").read_text())["missing"] == ["u2"]


def test_confidences(folder, capsys):
    def write(**confidences):
        words = {"u1": "the bat sat", "u2": "on the mat", "u3": "yes"}
        records = (nbest(name, text, confidences.get(name)) for name, text in words.items())
        write_nbest(records, folder / "nbest.jsonl")

    write(u1=(0.9, 0.3, 0.8), u2=(0.7, 0.7, 0.7), u3=(1.0,))
    assert score(folder) == 0
    assert "confidence of 7 words: calibration error 21.4, area under the ROC curve 100.0" in capsys.readouterr().out
    assert json.loads((folder / "out" / "score.json").read_text())["confidence"]["right"] == 6
    write(u1=(0.9, 0.3, 0.8))
    assert score(folder) == 0
    assert "confidence" not in capsys.readouterr().out
    write(u1=(0.9, 30, 0.8))
    assert score(folder) == 1
    assert "utterance 'u1': confidence 30 is not between 0 and 1" in capsys.readouterr().err


def test_latency_of_streams(folder, capsys):
    save_cuts([cut(name, *values, timed=True) for name, values in REFS.items()], folder / "timed.jsonl.gz")
    partials = {"u1": [[0.3, "the"], [0.6, "the bat sat"]], "u2": [[0.5, "on the mat"]], "u3": [[0.4, "yes"]]}

    def write():
        lines = (json.dumps({"utterance": name, "partials": changes}) for name, changes in partials.items())
        (folder / "partials.jsonl").write_text("\n".join(lines))

    write()
    assert score(folder, "timed.jsonl.gz") == 0
    # Words end at 0.1, 0.2, 0.3; those that are right stand 0.2 and 0.3 | 0.4, 0.3 and 0.2 | 0.3 s later.
    line = "first words 0.40 s (0.48), each word 0.30 s (0.35), final text 0.30 s (0.30); 0.0% of words revised"
    assert line in capsys.readouterr().out
    figures = json.loads((folder / "out" / "score.json").read_text())
    assert figures["latency"]["emission"]["mean"] == pytest.approx(1.7 / 6)
    assert figures["last_words"] == {"deleted": 0, "utterances": []}
    for without in (("refs.jsonl.gz", "nbest.jsonl"), ("refs", "nbest.jsonl"), ("timed.jsonl.gz", "hyps")):
        assert score(folder, *without) == 0
        assert "latency" not in json.loads((folder / "out" / "score.json").read_text())
    partials["u3"] = [[0.4, "no"]]
    write()
    assert score(folder, "timed.jsonl.gz") == 1
    assert "partials.jsonl: utterance 'u3' ends in other words than" in capsys.readouterr().err


def test_a_lost_last_word_is_told(folder, capsys):
    (folder / "hyps").write_text("u1 the cat\nu2 on the mat\nu3 yes\n")
    assert score(folder, "refs", "hyps", "--baseline", f"{folder}/nbest.jsonl") == 0
    assert "last word deleted in 1 utterance\n" in capsys.readouterr().out
    figures = json.loads((folder / "out" / "score.json").read_text())
    assert figures["last_words"] == figures["baseline"]["last_words"] == {"deleted": 1, "utterances": ["u1"]}
    assert score(folder, "refs", "hyps", "--baseline", f"{folder}/hyps") == 0
    assert json.loads((folder / "out" / "score.json").read_text())["baseline"]["last_words"]["deleted"] == 0


def test_recall_of_phrases(folder, capsys):
    (folder / "phrases").write_text("cat\t3.0\nthe mat\n\n")
    assert score(folder, "refs", "hyps", "--phrases", f"{folder}/phrases") == 0
    assert "recall of 2 phrases 50.0 of 2" in capsys.readouterr().out
    assert score(folder, "refs", "hyps", "--phrases", f"{folder}/phrases", "--baseline", f"{folder}/hyps") == 0
    assert "against the baseline +0.0, 95% interval +0.0 to +0.0" in capsys.readouterr().out
    (folder / "phrases").write_text("\n")
    assert score(folder, "refs", "hyps", "--phrases", f"{folder}/phrases") == 1
    assert "no phrases" in capsys.readouterr().err


def test_baseline_and_blocks(folder, capsys):
    (folder / "baseline").write_text("u1 a bat sat\nu2 on a mat\nu3 yes\n")
    assert score(folder, "refs.jsonl.gz", "hyps", "--baseline", f"{folder}/baseline", "--blocks", "speaker") == 0
    figures = json.loads((folder / "out" / "score.json").read_text())
    assert figures["interval_over"] == "speaker"
    assert figures["baseline"]["wer"] == pytest.approx(300 / 7)
    assert figures["baseline"]["difference"] == pytest.approx(-200 / 7)
    assert "-28.57 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content", "arguments", "problem"),
    [
        ("hyps", "u1 a\nu9 b\n", ("refs", "hyps"), "hypothesis 'u9' has no reference"),
        ("hyps", "u1 a\nu1 b\n", ("refs", "hyps"), "line 2: utterance 'u1' comes twice"),
        ("refs", "u1\n", ("refs", "hyps"), "has no reference"),
        ("bad.jsonl", "{half\n", ("refs", "bad.jsonl"), "bad.jsonl: line 1"),
        ("bad.jsonl", "{half\n", ("bad.jsonl", "hyps"), "bad.jsonl: line 1"),
        ("refs", "u1 a\n", ("refs", "none"), "none: No such file"),
        ("x", "", ("refs", "hyps", "--by", "speaker"), "no attribute 'speaker'"),
        ("x", "", ("refs.jsonl.gz", "hyps", "--by", "accent"), "no attribute 'accent'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, capsys, file, content, arguments, problem):
    (folder / file).write_text(content)
    assert score(folder, *arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert problem in lines[-1] and lines[-1].startswith("asrkit score: ")
    assert not (folder / "out").exists()
