import itertools
import random
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import DataError
from datamodules.cache import text_digest
from datamodules.keys import loose_key, strict_key
from datamodules.overlap import TextOverlap
from datamodules.splits import SplitSizes, allocate, draw_splits

NAMES = ("no", "yes", "maybe")
SIZES = SplitSizes(head_init=20, train=40, dev=20)


def make_rows(size, word="text"):
    texts = [f"{word} number {index}" for index in range(size)]
    return texts, [index * index % 3 % 2 + index % 2 for index in range(size)]


def draw(pool, held_out, sizes=SIZES, seed=0, names=NAMES):
    return draw_splits(*pool, *held_out, sizes, seed, names).rows


def texts_of(pool, drawn):
    return {split: [pool[0][row] for row in drawn[split]] for split in ("head_init", "train", "dev")}


HINDI = ["".join(pair) for pair in itertools.product("कखगघ", ["", *"ािीुूृेैोौंःँ"])]
APART = ["C++", "C#", "C", "3.5", "35", "-5", "5", "good 🙂", "good 🙁", "good", "good!", "50 %", "50 €", *HINDI]


@given(st.text())
def test_the_loose_key_is_what_letters_and_digits_spell(text):
    expected = "".join(char for char in loose_key(text).decode() if char.isalnum())
    assert loose_key(text).decode() == expected
    assert loose_key(f" {text.upper() if text.isascii() else text} -_!") == loose_key(text)


@given(st.text(st.characters(codec="ascii")))
def test_the_short_way_for_ascii_equals_the_long_way(text):
    assert loose_key(text) == loose_key(text + "é")[:-2]
    assert strict_key(text) == strict_key(text + "é")[:-2].rstrip()


def test_the_loose_key_folds_case_and_compatibility_forms():
    assert loose_key("\uff26\uff55\uff4c\uff4c \ufb01ne STRASSE, \u00b2!") == loose_key("full fine straße 2")
    assert loose_key("... !?") == b""


@given(st.text(), st.sampled_from(["NFC", "NFD"]))
def test_the_strict_key_ignores_case_white_space_and_unicode_form_alone(text, form):
    assert strict_key(strict_key(text).decode()) == strict_key(text)
    assert strict_key(f"\n{unicodedata.normalize(form, text)}\t ") == strict_key(text)
    assert strict_key(unicodedata.normalize("NFD", text).casefold()) == strict_key(text)
    assert strict_key(text) or not text.strip()


def test_signs_symbols_and_marks_tell_texts_apart():
    assert len({strict_key(text) for text in APART}) == len(APART)
    assert strict_key(" Good\u00a0 FILM ") == strict_key("good film") != strict_key("good film!")


@given(st.lists(st.sampled_from(APART), max_size=6))
def test_texts_of_one_strict_key_have_one_loose_key(texts):
    loose = {strict_key(text): loose_key(text) for text in texts}
    assert [loose[strict_key(text.upper())] for text in texts] == [loose_key(text) for text in texts]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.data())
def test_allocation_is_exact_and_within_one_of_proportional(counts, data):
    size = data.draw(st.integers(len(counts), max(len(counts), sum(counts))))
    shares = allocate(size, counts)
    assert sum(shares) == size
    assert min(shares) >= 1
    if all(size * count >= sum(counts) for count in counts):
        assert all(abs(share - size * count / sum(counts)) < 1 for share, count in zip(shares, counts, strict=True))


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), st.integers(0, 100), st.integers(0, 100))
def test_a_larger_number_of_rows_has_no_fewer_of_any_class(counts, size, more):
    size += len(counts)
    smaller, larger = allocate(size, counts), allocate(size + more, counts)
    assert all(few <= many for few, many in zip(smaller, larger, strict=True))


def test_allocation_gives_a_rare_class_one_row_at_the_cost_of_the_largest():
    assert allocate(10, [980, 19, 1]) == [8, 1, 1]
    assert allocate(4, [50, 50, 50]) == [2, 1, 1]


def test_allocation_is_free_of_the_alabama_paradox():
    """By largest remainders, the third class has 2 of 10 rows and 1 of 11."""
    assert [allocate(size, [6, 6, 2])[2] for size in (10, 11, 14)] == [1, 1, 2]


def test_a_split_smaller_than_the_number_of_classes_is_refused():
    with pytest.raises(DataError, match="2 rows cannot hold a row of each of 3 classes"):
        allocate(2, [5, 5, 5])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.randoms(use_true_random=False))
def test_splits_are_disjoint_stratified_and_do_not_depend_on_the_order_of_rows(seed, rng):
    pool, held_out = make_rows(300), make_rows(50, "eval")
    drawn = draw(pool, held_out, seed=seed)
    rows = drawn["head_init"] + drawn["train"] + drawn["dev"]
    assert len(set(rows)) == len(rows) == 80
    counts = [Counter(pool[1])[label] for label in range(3)]
    for split, size in (("head_init", 20), ("train", 40), ("dev", 20)):
        found = Counter(pool[1][row] for row in drawn[split])
        assert [found[label] for label in range(3)] == allocate(size, counts)
    order = list(range(300))
    rng.shuffle(order)
    shuffled = [pool[0][row] for row in order], [pool[1][row] for row in order]
    assert texts_of(shuffled, draw(shuffled, held_out, seed=seed)) == texts_of(pool, drawn)


def test_the_draw_is_the_same_on_every_machine():
    pool = make_rows(300)
    texts = texts_of(pool, draw(pool, make_rows(50, "eval")))
    assert text_digest(*texts["head_init"], *texts["train"], *texts["dev"]).startswith("f4255775910fba6f")


def test_another_seed_draws_other_rows():
    pool, held_out = make_rows(300), make_rows(50, "eval")
    assert draw(pool, held_out, seed=0)["train"] != draw(pool, held_out, seed=1)["train"]


def test_no_text_of_eval_is_drawn_from_the_pool_even_where_eval_is_cut():
    pool, held_out = make_rows(300), make_rows(50, "eval")
    leaked = [text.upper() + "!" for text in pool[0][:100]]
    held_out = [*held_out[0], *leaked], [*held_out[1], *pool[1][:100]]
    drawn = draw(pool, held_out, SplitSizes(20, 40, 20, eval=10))
    assert min(row for split in ("head_init", "train", "dev") for row in drawn[split]) >= 100
    assert len(drawn["eval"]) == 10


@given(st.integers(3, 50))
@settings(max_examples=15, deadline=None)
def test_the_size_of_eval_changes_no_other_split(size):
    pool, held_out = make_rows(300), make_rows(50, "eval")
    whole = draw(pool, held_out)
    cut = draw(pool, held_out, SplitSizes(20, 40, 20, eval=size))
    assert whole["eval"] == list(range(50))
    assert len(set(cut["eval"])) == size
    assert {name: cut[name] for name in ("head_init", "train", "dev")} == {
        name: whole[name] for name in ("head_init", "train", "dev")
    }


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0, 0, 0, 1, 1, 2]), min_size=60, max_size=120), st.integers(3, 40), st.integers(3, 40))
def test_a_smaller_train_is_the_front_of_a_larger_one_and_moves_nothing_else(labels, first, second):
    texts, _ = make_rows(len(labels))
    pool, held_out = (texts + ["no", "yes", "maybe"] * 4, labels + [0, 1, 2] * 4), make_rows(50, "eval")
    pool = [f"{text} {row}" for row, text in enumerate(pool[0])], pool[1]
    size, larger = sorted((first, second))
    small, large = (draw(pool, held_out, SplitSizes(3, train, 3)) for train in (size, larger))
    assert small["train"] == large["train"][:size]
    assert (small["head_init"], small["dev"]) == (large["head_init"], large["dev"])


def test_more_eval_rows_than_there_are_are_all_of_them():
    pool, held_out = make_rows(300), make_rows(50, "eval")
    sizes = SplitSizes(20, 40, 20)
    whole = draw(pool, held_out, sizes)
    assert draw(pool, held_out, replace(sizes, eval=2000)) == draw(pool, held_out, replace(sizes, eval=50)) == whole
    assert len(draw(pool, held_out, replace(sizes, eval=49))["eval"]) == 49


PHRASES = st.lists(st.sampled_from(["a", "b", "c", "D", "e,", "(f)"]), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(PHRASES, min_size=12, max_size=60), st.integers(2, 8), st.integers(2, 8), st.integers(2, 8))
def test_no_training_row_overlaps_with_dev_and_dev_is_drawn_first(phrases, head_init, train, dev):
    pool = phrases, [row % 2 for row in range(len(phrases))]
    try:
        drawn = draw(pool, (["eval"], [0]), SplitSizes(head_init, train, dev), names=("no", "yes"))
    except DataError as err:
        assert "usable ones are found" in str(err)
        return
    overlap = TextOverlap(phrases[row] for row in drawn["dev"])
    assert not [row for row in drawn["head_init"] + drawn["train"] if phrases[row] in overlap]
    smaller = draw(pool, (["eval"], [0]), SplitSizes(2, 2, dev), names=("no", "yes"))
    assert smaller["dev"] == drawn["dev"]
    assert set(smaller["train"]) <= set(drawn["train"])
    assert set(smaller["head_init"]) <= set(drawn["head_init"])


def test_rows_that_are_passed_over_are_counted():
    pool, held_out = make_rows(300), make_rows(50, "eval")
    texts = [f"{text} of a long row" for text in pool[0]]
    dev = [texts[row] for row in draw((texts, pool[1]), held_out)["dev"]]
    phrases = [" ".join(text.split()[1:5]) for text in dev]  # such as `number 7 of a`
    drawn = draw_splits(texts + phrases, pool[1] + [0] * 20, *held_out, SplitSizes(20, 200, 20), 0, NAMES)
    dev = TextOverlap((texts + phrases)[row] for row in drawn.rows["dev"])
    assert 0 < drawn.left_out["drawn but overlapping with a dev row"] <= sum(text in dev for text in texts + phrases)


def test_repeated_empty_and_unlabeled_rows_are_not_drawn_and_counted():
    pool = make_rows(90)
    texts = (
        pool[0] + [f" {text.title()}" for text in pool[0]] + [" ", ""] * 20 + [f"unlabeled {row}" for row in range(40)]
    )
    labels = pool[1] * 2 + [0] * 40 + [-1] * 40
    held_out = make_rows(50, "eval")
    texts, labels = texts + [f"{text}!" for text in held_out[0][:7]], labels + [0] * 7
    drawn = draw_splits(texts, labels, *held_out, SIZES, 0, NAMES)
    chosen = [row for split in ("head_init", "train", "dev") for row in drawn.rows[split]]
    assert max(chosen) < 180
    assert len({strict_key(texts[row]) for row in chosen}) == 80
    assert drawn.left_out == {
        "repeated": 90,
        "without text": 40,
        "unlabeled": 40,
        "matching an eval row": 7,
    }


def test_texts_that_signs_tell_apart_are_all_drawn():
    texts = [f"{text} {row}" for row in range(10) for text in APART if text != "good!"]  # overlaps with "good"
    labels = [row % 2 for row in range(len(texts))]
    drawn = draw_splits(texts, labels, ["an eval row"], [0], SplitSizes(100, len(texts) - 200, 100), 0, ("no", "yes"))
    assert sum(len(drawn.rows[split]) for split in ("head_init", "train", "dev")) == len(texts)
    assert not drawn.left_out


@pytest.mark.parametrize("text", ["C#", "c++!", "(C)"])
def test_a_training_row_that_only_signs_tell_from_an_eval_row_is_not_drawn(text):
    pool, held_out = make_rows(300), (["C++"], [0])
    drawn = draw_splits([*pool[0], text], [*pool[1], 0], *held_out, SIZES, 0, NAMES)
    assert drawn.left_out == {"matching an eval row": 1}


def test_a_text_without_letters_counts_by_its_signs():
    pool, held_out = make_rows(300), ([":)", "🙂"], [0, 0])
    drawn = draw_splits([*pool[0], ":(", ":)", "🙁", "🙂"], [*pool[1], 0, 0, 0, 0], *held_out, SIZES, 0, NAMES)
    assert drawn.left_out == {"matching an eval row": 2}


def test_equal_texts_with_different_labels_are_found():
    pool, held_out = make_rows(300), make_rows(50, "eval")
    texts = [*pool[0], "Good  film", "good film", "GOOD FILM", "good film!", pool[0][0], held_out[0][0], "alone", " "]
    labels = [*pool[1], 0, 1, 2, 0, pool[1][0], (held_out[1][0] + 1) % 3, -1, 1]
    drawn = draw_splits(texts, labels, *held_out, SIZES, 0, NAMES)
    assert [strict_key(text) for text in drawn.contradictions] == [b"good film", strict_key(held_out[0][0])]


def test_of_rows_with_one_text_and_two_labels_the_same_stays_in_any_order():
    texts, labels = make_rows(90)
    twice = texts + [text.title() for text in texts], labels + [(label + 1) % 3 for label in labels]
    order = random.Random(0).sample(range(180), 180)
    shuffled = [twice[0][row] for row in order], [twice[1][row] for row in order]
    first, second = draw(twice, make_rows(50, "eval")), draw(shuffled, make_rows(50, "eval"))
    assert texts_of(twice, first) == texts_of(shuffled, second)
    assert [twice[1][row] for row in first["train"]] == [shuffled[1][row] for row in second["train"]]


def test_too_few_rows_of_a_class_names_class_asked_and_found():
    texts, _ = make_rows(202)
    pool = texts, [0, 1] * 100 + [2, 2]
    with pytest.raises(
        DataError, match=r"^3 rows of class 'maybe' .* only 2 usable .* Lower head_init_size, train_size"
    ):
        draw(pool, make_rows(50, "eval"))


def test_a_missing_class_is_an_error():
    texts, _ = make_rows(300)
    with pytest.raises(DataError, match="1 rows of class 'maybe' are asked for in all, but only 0"):
        draw((texts, [0, 1] * 150), make_rows(50, "eval"))


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_eval_cannot_have_is_an_error(label):
    with pytest.raises(DataError, match=rf"evaluation split should have labels 0 to 2, but also has \[{label}\]"):
        draw(make_rows(300), (["a text"], [label]))


def test_an_empty_evaluation_split_is_an_error():
    with pytest.raises(DataError, match="The evaluation split has no rows"):
        draw(make_rows(300), ([], []))
