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
        ("re:(", "bad regular expression `(`: missing )"),
        ("re:(?=a)b", "no look-around"),
        ("re:(a)\\1", "no back-references"),
        ("re:\ud800", "surrogates not allowed"),
        ("re:" + "(" * 400, "bad regular expression"),
        ("re:a{1000}{1000}", "bad repetition operator"),
        ("x" * 501, "at most 500 characters"),
    ],
)
def test_bad_pattern_says_what_is_wrong(pattern, says):
    with pytest.raises(PatternError, match=None) as caught:
        compile_pattern(pattern)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "pattern", ["re:(a+)+$", "re:(a|aa)*b", "re:(.*a){30}", "*a*a*a*a*a*a*a*a*a*a*a*a*b", "**.a*.**.a*.**.a*.**.b"]
)
def test_no_pattern_takes_long(pattern):
    """An engine that backtracks would not be done before the sun is."""
    assert not matches(pattern, "a." * 2000 + "c")
    assert not matches(pattern, "a" * 4000 + "c")
