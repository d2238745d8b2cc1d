import math

import pytest
import torch
from streams import streamed
from tiny_models import DIM, bigram, search_all, tiny_model

from asrkit.data.formats import ctm, json_text
from asrkit.search.beam import BeamSearch
from asrkit.search.confidence import among_labels, word_confidence, word_posteriors
from asrkit.search.greedy import GreedySearch
from asrkit.search.streaming import decode_streams, partial_results


def test_among_labels():
    log_probs = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).log()
    assert among_labels(log_probs[:2, 2], log_probs[:2, 0]).tolist() == pytest.approx([0.4, 1.0])
    assert 0 <= among_labels(torch.tensor(-200.0), torch.tensor(0.0)) <= 1  # both beyond what float32 can tell


def test_word_posteriors():
    hyps = ["the cat sat".split(), "the bat sat".split(), "cat sat down".split(), []]
    shares = [0.4, 0.3, 0.2, 0.1]
    first, second = word_posteriors(hyps, [7 + math.log(share) for share in shares], most=2)
    assert first == pytest.approx([0.7, 0.6, 0.9])
    assert second == pytest.approx([0.7, 0.3, 0.9])
    assert word_posteriors([["yes"]], [-1000.0], most=1) == [[1.0]]
    assert word_posteriors([[], ["yes"]], [0.0, -1.0], most=1) == [[]]


def test_word_confidence():
    assert word_confidence([0.9, 0.4], 0.25) == pytest.approx(0.3)
    assert word_confidence([1.0], 1.0000001) == 1.0


@torch.no_grad()
def teacher_forced(search, encoder_out, path):
    """The probability of each token of a path among all labels in its frame, of encoder_out (T, D)."""
    model, confidences, context = search.model, [], [0]
    for token, frame in zip(path.tokens, path.frames, strict=True):
        predictor_out, _ = model.predictor(torch.tensor([context]), model.predictor.start(1))
        predictor = model.joiner.project_predictor(predictor_out[0, -1])
        scores = model.joiner.log_probs(model.joiner.project_encoder(encoder_out[frame]), predictor)
        for scorer, weight in getattr(search, "scorers", ()):
            scores += weight * scorer.table[context[-1]]
        if weight := getattr(search, "internal_lm_weight", 0):
            scores += weight * model.joiner.internal_lm(predictor)
        confidences.append(scores[1:].softmax(dim=0)[token - 1].item())
        context.append(token)
    return confidences


@pytest.mark.parametrize("topology", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("fusion", [False, True])
def test_confidences_of_tokens_by_hand(topology, fusion):
    model = tiny_model("stateless", seed=1, topology=topology, factored_blank=topology == "modified")
    model.joiner.output.bias.data[0] -= 1.0
    options = {"scorers": [(bigram(), 0.8)], "internal_lm_weight": -0.3} if fusion else {}
    encoder_out = 2 * torch.randn(3, 12, DIM)
    searches = [BeamSearch(model, 4, **options)] + ([] if fusion else [GreedySearch(model)])
    for search in searches:
        nbest = search_all(search, encoder_out)
        assert sum(len(path.tokens) for hyps in nbest for path in hyps) > 6
        for hyps, out in zip(nbest, encoder_out, strict=True):
            for path in hyps:
                assert path.confidences == pytest.approx(teacher_forced(search, out, path), abs=1e-4)


def test_of_words_in_results_whole_streamed_and_partial(recogniser, tones):
    samples = tones(4.0)
    result = recogniser.recognise([samples], ["a"])[0]
    words = [word for hyp in result.hyps for word in hyp.words]
    assert words and all(0 <= word.confidence <= 1 for word in words)
    assert len({word.confidence for word in words}) > 1
    stream = recogniser.stream("a", 8)
    stream.accept(samples[:32000])
    while stream.ready:
        decode_streams([stream])
    partial = partial_results([stream])[0]
    assert len(partial.hyps) == 1 and partial.hyps[0].words
    stream.accept(samples[32000:])
    result = stream.finish()
    assert result == streamed(recogniser, samples, 8, 16000, lookahead=None)
    for record in (partial, result):
        assert all(0 <= word.confidence <= 1 for word in record.hyps[0].words)
        assert f"{record.hyps[0].words[0].confidence:.3f}" == ctm(record).splitlines()[0].split()[-1]
        assert json_text(record).count('"confidence": 0.') >= 1


def test_rivals_lower_a_partial_result_too(recogniser, tones):
    """A partial result shows one hypothesis, but its words' posteriors are those among all."""
    stream = recogniser.stream("a", 8)
    stream.accept(tones(4.0))
    while stream.ready:
        decode_streams([stream])
    path, *rivals = recogniser.search.hypotheses(stream._search_state, final=False)[0]
    alone, among = recogniser.nbest("a", 4.0, [path]), recogniser.nbest("a", 4.0, [path, *rivals], most=1)
    assert len(among.hyps) == 1
    pairs = list(zip(among.hyps[0].words, alone.hyps[0].words, strict=True))
    assert all(word.confidence <= other.confidence for word, other in pairs)
    assert any(word.confidence < other.confidence for word, other in pairs) == bool(rivals)
