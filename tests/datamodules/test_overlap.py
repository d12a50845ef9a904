from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.overlap import TextOverlap, split_words

TEXTS = st.lists(st.sampled_from(["a", "A.", "b", "(b)", "c", "--", "..."]), max_size=8).map(" ".join)


def overlap_by_all_pairs(text, others):
    """Return the definition, without an index."""
    words = split_words(text)
    return any(words and (words == other or _lies_in(words, other) or _lies_in(other, words)) for other in others)


def _lies_in(short, long):
    places = range(len(long) - len(short) + 1)
    return len(short) >= 3 and any(long[place : place + len(short)] == short for place in places)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.lists(TEXTS, max_size=5), TEXTS)
def test_the_index_finds_what_a_comparison_of_all_pairs_finds(texts, text):
    assert (text in TextOverlap(texts)) == overlap_by_all_pairs(text, list(map(split_words, texts)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A gorgeous film", True),
        ("gorgeous , witty film about love", True),
        ("gorgeous ,", False),
        ("is a gorgeous , witty film .", True),
        ("This is a gorgeous, witty film about LOVE!", True),
        ("he says this is a gorgeous , witty film about love , and leaves", True),
        ("and loved", False),
        ("Loved!", True),
        ("a gorgeous", False),
        ("a gorge", False),
        ("...", False),
    ],
)
def test_whole_words_count_without_case_and_punctuation(text, found):
    dev = ["This is a gorgeous , witty film about love .", "loved", "a gorgeous film", "...", "about love"]
    assert (text in TextOverlap(dev)) == found


def test_a_look_up_does_not_take_longer_with_more_texts():
    """Sixty thousand phrases against five hundred sentences: all pairs would be thirty million comparisons."""
    sentences = [" ".join(f"w{(sentence * 31 + place) % 4001}" for place in range(20)) for sentence in range(500)]
    phrases = [" ".join(f"w{(phrase * 17 + place) % 4001}" for place in range(9)) for phrase in range(60_000)]
    overlap = TextOverlap(sentences)
    start = perf_counter()
    assert 0 < sum(phrase in overlap for phrase in phrases) < 60_000
    assert perf_counter() - start < 60
