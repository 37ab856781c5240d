import sys

import pytest

from regbn_surgery._rules.yaml_tree import LARGEST_FILE, read_tree


def test_scalars_follow_yaml_1_2():
    tree = read_tree(b"[1e-3, 1:30, 012, on, no, .5, ~, 'x', 0x1F, 1_000, 2026-01-01, -.inf, True, '1']", "x")
    assert tree.value == [
        0.001, "1:30", 12, "on", "no", 0.5, None, "x", 31, "1_000", "2026-01-01", float("-inf"), True, "1",
    ]  # fmt: skip
    assert tree.problems == []


def test_keys_are_text_whatever_they_look_like():
    assert read_tree(b"{on: 1, 0: 2, null: 3, 1.5: 4}", "x").value == {"on": 1, "0": 2, "null": 3, "1.5": 4}


def test_marks_count_from_one():
    tree = read_tree(b"a:\n  - b: 7\n", "x.yaml")
    assert tree.marks.at(("a", 0, "b")) == "x.yaml:2:8"
    assert tree.marks.at(("a", 0, "b"), key=True) == "x.yaml:2:5"
    assert tree.marks.at(("a", 0, "missing")) == "x.yaml:2:5"  # the nearest thing that is there


@pytest.mark.parametrize(
    ("data", "place", "says"),
    [
        (b"x: &a 1\ny: *a", (2, 4), "aliases (`*a`) are not used"),
        (b"&a [*a]", (1, 5), "aliases"),
        (b"a: !!python/object/apply:os.system [x]", (1, 4), "tag `tag:yaml.org,2002:python/object/apply"),
        (b"a: !mine 1", (1, 4), "tag `!mine`"),
        (b"a: !!int x", (1, 4), "not a number"),
        (b"a: !!bool on", (1, 4), "does not fit its tag `!!bool`"),
        (b"a: 1\nb: 2\na: 3", (1, 4), "twice: at 1:1 and 3:1"),
        (b"? [a]\n: 1", (1, 1), "a key must be a name; found a list or mapping at 1:3"),
        (b"a: b: c", (1, 5), "not YAML"),
        (b"---\na: 1\n---\nb: 1\n", (3, 1), "another document"),
        (b"a: \x00", (1, 4), "U+0000 is not allowed"),
        (b"a: 1\nb: \xff", (2, 1), "not UTF-8"),
        (b"# nothing\n", (1, 1), "empty"),
        (b"a: " + b"9" * 5000, (1, 4), "too long"),
        (b"[" * 30, (1, 25), "nested more than 24"),
        (b" " * (LARGEST_FILE + 1), (1, 1), "at most"),
    ],
)
def test_what_rules_have_no_use_for_is_refused_with_its_place(data, place, says):
    tree = read_tree(data, "x.yaml")
    (problem,) = tree.problems
    assert says in problem.text
    assert tree.marks.values.get(problem.path) == place


@pytest.mark.parametrize("piece", [b"[", b"{", b"- ", b"? ", b"&a [", b"a: {", b"'", b'"\\x', b"\n", b"#", b"!", b"%"])
def test_pathological_text_takes_work_in_proportion_to_its_length(piece):
    small, large = (_calls(piece * (size // len(piece))) for size in (LARGEST_FILE // 64, LARGEST_FILE // 16))
    assert large < 4.5 * small + 2000
    read_tree(piece * (LARGEST_FILE // len(piece)), "x")


def _calls(data):
    """How many functions are called to read a file."""
    seen = 0

    def count(frame, event, argument):
        nonlocal seen
        seen += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        read_tree(data, "x")
    finally:
        sys.setprofile(before)
    return seen
