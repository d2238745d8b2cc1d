"""Contextual phrases: a bonus for the words that the user is likely to say, by an Aho-Corasick automaton.

The trie of all phrases with its failure links (Aho and Corasick, "Efficient String Matching", 1975) becomes two dense
tables, next node and gain for each node and token, so a step of the search is two look-ups however many phrases there
are. A matched token brings its bonus at once, which keeps the hypothesis in the beam; what a match that breaks has
brought is taken back, but a phrase once complete, at the end of a word, keeps all of its bonus.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asrkit.data.manifests import read_numbered_texts
from asrkit.errors import InputError
from asrkit.text.tokenizer import Tokenizer

ROOT = 0


@dataclass(frozen=True)
class Phrase:
    """One phrase in tokens, and its bonus for each of them."""

    tokens: Sequence[int]
    bonus: float


def read_phrases(file: Path | str, tokenizer: Tokenizer) -> list[Phrase]:
    """Read phrases, one a line; a tab and a number after one is its bonus for a token, instead of 1.

    Raises:
        InputError: the file cannot be read, holds no phrase, or has a phrase that the tokenizer cannot spell or a bonus
            that is no number; names file and line.
    """
    phrases = []
    for number, line in read_numbered_texts(file):
        text, tab, own = line.partition("\t")
        try:
            phrases.append(Phrase(tokenizer.encode(text), _number(own) if tab else 1.0))
        except InputError as error:
            raise InputError(f"{file}: line {number}: {error}") from error
    if not phrases:
        raise InputError(f"{file}: no phrases")
    return phrases


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"a bonus must be a number, not '{text}'")
    return value


class ContextScorer:
    """Scores the tokens of phrases; the state is the node of the automaton (B,).

    Where phrases overlap, the automaton follows the earliest start for as long as a phrase goes on. Phrases that share
    their first tokens share, while both can still be meant, the larger of their bonuses.

    Args:
        phrases: what to prefer.
        word_starts: V booleans, whether a token starts a word: a phrase is complete only if the next one does.
    """

    name = "context"

    def __init__(self, phrases: Sequence[Phrase], word_starts: Sequence[bool], device: torch.device | str = "cpu"):
        next_nodes, gains, final = _automaton(phrases, torch.tensor(word_starts))
        self._next, self._gains, self._final = (x.to(device) for x in (next_nodes, gains, final))

    def start(self, n: int) -> list[Tensor]:
        return [self._next.new_full((n,), ROOT, dtype=torch.int64)]

    def score(self, state: list[Tensor]) -> Tensor:
        return self._gains[state[0]]

    def advance(self, state: list[Tensor], tokens: Tensor) -> list[Tensor]:
        return [self._next[state[0], tokens].long()]

    def finish(self, state: list[Tensor]) -> Tensor:
        return self._final[state[0]]


def _automaton(phrases: Sequence[Phrase], word_starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return next nodes (M, V), gains (M, V) and the gain of the end of the sentence (M,).

    `credit` of a node is what the tokens on its path have brought. When the match breaks there, the automaton goes on
    with the longest suffix that is a node too (its failure node), and of the tokens dropped it keeps
    max(whole, inside): `whole`, the bonus of the longest phrase that began with the path and is complete; `inside`,
    what a run over the path without its first token would have been left with on reaching the failure node. Thus
        gain(node, token) = gain(failure, token) + credit(failure) - credit(node) + kept(node, token)
    where the token continues no phrase; a phrase that ends at the node itself is complete if the token starts a word.
    """
    children, credit, ends = _trie(phrases)
    size, vocab = len(children), len(word_starts)
    next_nodes = torch.zeros(size, vocab, dtype=torch.int32)
    gains = torch.zeros(size, vocab)
    final = torch.zeros(size)
    failure, inside, whole = [ROOT] * size, [0.0] * size, [0.0] * size
    queue = [ROOT]
    for node in queue:  # breadth first: a failure node is nearer to the root, so it is done before
        fail, at_end = failure[node], max(whole[node], ends[node])
        if node != ROOT:
            kept = torch.where(word_starts, max(at_end, inside[node]), max(whole[node], inside[node]))
            change = credit[fail] - credit[node]
            next_nodes[node], gains[node] = next_nodes[fail], gains[fail] + change + kept
            final[node] = final[fail] + change + max(at_end, inside[node])
        for token, child in children[node].items():
            if node != ROOT:
                failure[child] = int(next_nodes[fail, token])
                inside[child] = inside[node] + float(gains[fail, token]) + credit[fail] - credit[failure[child]]
            whole[child] = at_end if word_starts[token] else whole[node]
            next_nodes[node, token] = child
            gains[node, token] = credit[child] - credit[node]
            queue.append(child)
    return next_nodes, gains, final


def _trie(phrases: Sequence[Phrase]) -> tuple[list[dict[int, int]], list[float], list[float]]:
    """Return each node's children, the credit of its path, and the bonus of the phrase that ends there (0: none)."""
    children: list[dict[int, int]] = [{}]
    bonus, parents, ends = [0.0], [ROOT], [0.0]
    for phrase in phrases:
        node = ROOT
        for token in phrase.tokens:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
                bonus.append(phrase.bonus)
                parents.append(node)
                ends.append(0.0)
            node = children[node][token]
            bonus[node] = max(bonus[node], phrase.bonus)
        ends[node] = max(ends[node], phrase.bonus * len(phrase.tokens))
    credit = [0.0]
    for node in range(1, len(children)):
        credit.append(credit[parents[node]] + bonus[node])
    return children, credit, ends
