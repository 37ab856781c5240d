import pytest

from regbn_surgery._rules.patterns import PatternError, compile_pattern, matches


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        ("fusion", ["fusion"], ["fusion.a", "afusion", ""]),
        ("fusion.*", ["fusion.a"], ["fusion", "fusion.a.b"]),
        ("fusion.**", ["fusion", "fusion.a", "fusion.a.b"], ["fusions", "x.fusion", ""]),
        ("**", ["", "a", "a.b.c"], []),
        ("**.cross", ["cross", "a.cross", "a.b.cross"], ["across", "cross.a"]),
        ("a.**.b", ["a.b", "a.x.b", "a.x.y.b"], ["ab", "a.xb", "b", "a"]),
        ("a.**.**.b", ["a.b", "a.x.y.b"], ["ab"]),
        ("layer?.x*", ["layer1.x", "layer2.xyz"], ["layer10.x", "layer.x", "layer1.x.y"]),
        ("", [""], ["a"]),
        ("*", ["a"], ["", "a.b"]),
        ("re:layer\\d+\\.x", ["layer12.x"], ["layer12.xy", "alayer1.x"]),
        ("a-b", ["a-b"], ["a"]),
    ],
)
def test_pattern_matches_whole_names_by_segment(pattern, hits, misses):
    assert [name for name in hits if not matches(pattern, name)] == []
    assert [name for name in misses if matches(pattern, name)] == []


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("a..b", "segment between dots is empty"),
        ("a**", "must be a whole segment"),
        ("a[0]", "write `re:`"),
        ("re:(", "unterminated subpattern at position 0"),
        ("re:" + "(" * 400, "bad regular expression"),
        ("re:a{99999999999999}", "too large a repetition"),
        ("x" * 501, "at most 500 characters"),
    ],
)
def test_bad_pattern_says_what_is_wrong(pattern, says):
    with pytest.raises(PatternError, match=None) as caught:
        compile_pattern(pattern)
    assert says in str(caught.value)
