"""What the pictures of `asrkit compress report` are made of."""

from asrkit.compress.report import accuracy_pictures, block_sizes


def measured(milliseconds: float, *schemes: str) -> dict:
    return {"milliseconds": milliseconds, "layers": [{"scheme": scheme} for scheme in ("dense", *schemes)]}


REPORTS = {
    "dense": measured(1.0),
    "rule-90": measured(0.3, "punched 4x1", "punched 8x1"),
    "filter-90": measured(0.1, "filter", "filter"),
    "punched_16x1-90": measured(0.2, "punched 16x1"),
    "punched_4x1-90": measured(0.25, "punched 4x1"),
    "punched_4x1-95": measured(0.15, "punched 4x1"),
    "filter-95": measured(0.05, "filter"),
    "unstructured-90": measured(0.4, "unstructured"),
    "pattern-90": measured(0.35, "pattern"),
}
SCORES = [("accuracy", 99.0 - number) for number in range(len(REPORTS))]


def test_block_sizes_are_those_of_one_scheme_in_all_layers_at_the_ratio_of_most():
    names, reports = list(REPORTS), list(REPORTS.values())
    found = {scheme: names[i] for scheme, i in block_sizes(names, reports).items()}
    assert list(found) == ["unstructured", "punched 4x1", "punched 16x1", "filter"]  # the smallest first
    assert found["punched 4x1"] == "punched_4x1-90" and found["filter"] == "filter-90"
    assert block_sizes(["dense"], [REPORTS["dense"]]) == {}


def test_pictures_show_what_was_measured():
    found = accuracy_pictures(list(REPORTS), SCORES, list(REPORTS.values()))
    above, below = found["block_sizes"].axes
    assert list(above.lines[0].get_ydata()) == [8.0, 5.0, 4.0, 3.0]
    assert list(below.lines[0].get_ydata()) == [0.4, 0.25, 0.2, 0.1]
    (axes,) = found["trade_off"].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert list(lines) == ["dense", "rule", "filter", "punched_4x1", "pattern"]  # those of one ratio are in the other
    assert lines["punched_4x1"] == [[0.15, 6.0], [0.25, 5.0]] and lines["dense"] == [[1.0, 1.0]]
    assert list(accuracy_pictures(["dense"], SCORES[:1], [REPORTS["dense"]])) == ["trade_off"]
