"""`asrkit results`: write RESULTS.md from the figures of scored experiments.

Usage:
    asrkit results egs/mini/asr --exp egs/mini/asr/exp
"""

from pathlib import Path

from asrkit.cli.main import run
from asrkit.config import read_config
from asrkit.errors import InputError
from asrkit.files import atomic_write
from asrkit.scoring.provenance import git_version, machine
from asrkit.scoring.results import Results, evaluate, is_met, markdown, read_measures


def results(recipe: Path, *, exp: Path | None = None, out: Path | None = None) -> None:
    """Write RESULTS.md as the recipe's results.yaml describes it, and print each claim that is not met.

    Args:
        recipe: folder with results.yaml.
        exp: the experiments' folder; RECIPE/exp by default.
        out: the file to write, beside its pictures; RECIPE/RESULTS.md by default.
    """
    described = read_config(Results, [recipe / "results.yaml"])
    out = out or recipe / "RESULTS.md"
    for picture in described.pictures:
        if not (out.parent / picture).is_file():
            raise InputError(f"{recipe / 'results.yaml'}: picture {out.parent / picture} does not exist")
    measures = read_measures(described.rows, exp or recipe / "exp")
    text = markdown(described, measures, git_version(recipe), machine())  # before there is a new file in the checkout
    with atomic_write(out) as file:
        file.write(text)
    unmet = [claim.claim for claim in described.claims if not is_met(claim, evaluate(claim.value, measures))]
    print(f"{out}: {len(described.claims) - len(unmet)} of {len(described.claims)} claims met")
    for claim in unmet:
        print(f"not met: {claim}")


def main(argv: list[str]) -> None:
    run(results, argv)
