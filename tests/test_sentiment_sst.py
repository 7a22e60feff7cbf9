"""SST-2 in its two layouts: what is read, and what is refused and how."""

import os
import time

import numpy as np
import pytest
from helpers.external import real_data

from jaxablate.config import SentimentDataConfig
from jaxablate.data.sentiment.prepare import prepare
from jaxablate.data.sentiment.sst import GLUE_DEV, parse_tree, read_sst2
from jaxablate.errors import ConfigError, DataError

GOOD, BAD, NEUTRAL = "(3 (2 It) (4 (3 works) (2 .)))", "(0 (2 It) (1 fails))", "(2 (2 It) (2 is))"


def write(folder, **files):
    """Files named by keyword (train_txt is train.txt), each of the lines given."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def trees(folder, train=(GOOD, NEUTRAL, BAD), dev=(GOOD, BAD), test=(BAD, GOOD)):
    return write(folder, train_txt=train, dev_txt=dev, test_txt=test)


def pairs(split):
    return list(zip(split.texts, split.labels.tolist(), strict=True))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (GOOD, (3, "It works .")),
        ("(2 word)", (2, "word")),
        ("(0 (1 -LRB-) (2 (3 a\\/b) (4 -RRB-)))", (0, "-LRB- a\\/b -RRB-")),
        ("  (4 (2 é)  (2 ñ)) ", (4, "é ñ")),
        ("(1 (2 a) (2 b) (2 c))", (1, "a b c")),
    ],
)
def test_a_tree_is_its_root_label_and_leaves(line, found):
    assert parse_tree(line) == found


@pytest.mark.parametrize("line", [
    "(3 (2 It) (4 works)", "(3 (2 It) (4 works", "(3 (2 It) (4 works)))", ")", "(5 (2 It) (4 works))",
    "(3 (2 It) (-1 works))", "(3 (2 It) (x works))", "((2 It) (2 works))", "(", "(3 (2 It) (4 ))", "(3 ())",
    "(3 (2 It works))", "(3 It (2 works))", "(3 (2 It) works)", "(3 good) .", "good", "(3 good) (3 good)", "", "   ",
    "(3 \0)", "\0", "(3 good)(2 good)", "(3 (2 It)\t(4 works))",
])
def test_a_malformed_tree_is_refused_with_its_line(line, tmp_path):
    with pytest.raises(ValueError, match="no tree"):
        parse_tree(line)
    folder = trees(tmp_path, dev=[GOOD, BAD, line, GOOD])
    with pytest.raises(DataError, match="no tree") as error:
        read_sst2(folder)
    assert f"{folder / 'dev.txt'}:3: " in one_line(error) and "mend this line" in one_line(error)


DEEP = 20_000


@pytest.mark.parametrize(("line", "label"), [
    ("(3 " * DEEP + "(2 a)" + ")" * DEEP, 3), ("(3 " * DEEP, None), ("(3 " * DEEP + "a b" + ")" * DEEP, None),
    ("(3 (2 a)" * DEEP, None), ("(3" + " (2 a)" * DEEP + ")", 3), ("(3" + " (2 a)" * DEEP, None),
])
def test_a_tree_is_read_in_time_linear_in_its_length(line, label):
    """A pass over the line for each depth would take minutes for a line of 100 KB, and days for one of a megabyte."""
    start = time.process_time()
    if label is None:
        with pytest.raises(ValueError, match="no tree"):
            parse_tree(line)
    else:
        assert parse_tree(line)[0] == label
    assert time.process_time() - start < 2


@pytest.mark.parametrize("first", ["train.txt", "dev.txt", "test.txt"])
def test_a_byte_order_mark_is_passed_over(tmp_path, first):
    plain = read_sst2(trees(tmp_path))
    (tmp_path / first).write_bytes(b"\xef\xbb\xbf" + (tmp_path / first).read_bytes())
    marked = read_sst2(tmp_path)
    assert {k: pairs(v) for k, v in plain.items()} == {k: pairs(v) for k, v in marked.items()}


def test_what_is_no_file_or_no_path_is_one_error(tmp_path):
    (trees(tmp_path) / "dev.txt").unlink()
    os.mkfifo(tmp_path / "dev.txt")  # opening it would wait for a writer
    with pytest.raises(DataError, match=r"dev.txt cannot be read \(it is a pipe or a device, not a file\)"):
        read_sst2(tmp_path)
    os.symlink("loop", tmp_path / "loop")
    for path in (tmp_path / ("x" * 300), tmp_path / "loop", tmp_path / "a\0b"):
        with pytest.raises(ConfigError):
            read_sst2(path)


@pytest.mark.parametrize("place", ["", "trees"])
def test_trees_without_the_neutral_ones(tmp_path, place):
    trees(tmp_path / place, train=[GOOD, NEUTRAL, BAD, "(4 fine)", "(1 poor)"])
    splits = read_sst2(tmp_path)
    assert list(splits) == ["train", "dev", "test"]
    assert pairs(splits["train"]) == [("It works .", 1), ("It fails", 0), ("fine", 1), ("poor", 0)]
    assert pairs(splits["test"]) == [("It fails", 0), ("It works .", 1)]
    assert splits["train"].labels.dtype == np.int32


def test_windows_line_ends_and_a_missing_last_one_change_nothing(tmp_path):
    plain = read_sst2(trees(tmp_path / "a"))
    folder = trees(tmp_path / "b")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    other = read_sst2(folder)
    assert {k: pairs(v) for k, v in plain.items()} == {k: pairs(v) for k, v in other.items()}


def test_balance_keeps_the_first_of_the_larger_class_of_the_training_split(tmp_path):
    many = [f"(4 good{i})" for i in range(5)]
    folder = trees(tmp_path, train=[*many[:2], "(0 a)", *many[2:], "(0 b)", "(0 c)"], dev=[*many, BAD])
    balanced, whole = read_sst2(folder), read_sst2(folder, balance=False)
    assert balanced["train"].texts == ("good0", "good1", "a", "good2", "b", "c")
    assert whole["train"].class_counts() == (3, 5)
    assert (balanced["train"].left_out, whole["train"].left_out) == (2, 0)
    assert balanced["dev"].class_counts() == whole["dev"].class_counts() == (1, 5)


@pytest.mark.parametrize("name", ["dev.txt", "test.txt"])
def test_a_missing_split_is_named(tmp_path, name):
    (trees(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=f"lacks {name} beside train.txt"):
        read_sst2(tmp_path)


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_any_layout_says_what_it_needs(tmp_path, make):
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(DataError, match=r"has no SST-2.*train.txt.*train.tsv") as error:
        read_sst2(folder)
    assert str(folder) in one_line(error)


def test_a_split_of_one_class_or_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="sst2-trees dev no text of one of the two classes"):
        read_sst2(trees(tmp_path / "a", dev=[GOOD]))
    with pytest.raises(DataError, match="sst2-trees test no text"):
        read_sst2(trees(tmp_path / "b", test=[]))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (trees(tmp_path) / "test.txt").write_bytes(b"(3 caf\xe9)\n")
    with pytest.raises(DataError, match="test.txt is not UTF-8 text"):
        read_sst2(tmp_path)


def glue(folder, n=GLUE_DEV + 100, train=(), dev=("good film \t1", "bad film \t0")):
    rows = [f"phrase {i} \t{i % 2}" for i in range(n)]
    return write(folder, train_tsv=["sentence\tlabel", *rows, *train], dev_tsv=["sentence\tlabel", *dev])


def test_glue_dev_is_test_and_dev_is_held_out_by_the_seed(tmp_path):
    folder = glue(tmp_path)
    splits, again, other = read_sst2(folder), read_sst2(folder), read_sst2(folder, split_seed=1)
    assert pairs(splits["test"]) == [("good film", 1), ("bad film", 0)]
    assert len(splits["dev"]) == GLUE_DEV
    assert not set(splits["dev"].texts) & set(splits["train"].texts)
    assert {k: pairs(v) for k, v in splits.items()} == {k: pairs(v) for k, v in again.items()}
    assert pairs(other["dev"]) != pairs(splits["dev"])
    whole = read_sst2(folder, balance=False)
    assert sorted(whole["dev"].texts + whole["train"].texts) == sorted(f"phrase {i}" for i in range(GLUE_DEV + 100))
    assert all(label == int(text.split()[1]) % 2 for split in ("train", "dev") for text, label in pairs(whole[split]))


@pytest.mark.parametrize("row", ["fine\t2", "fine\t-1", "fine\tgood", "fine\t", "  \t1", "fine", "fine\t1\t1", ""])
def test_a_bad_row_of_glue_is_named(tmp_path, row):
    folder = glue(tmp_path, dev=["good\t1", row, "bad\t0"])
    with pytest.raises(DataError, match="no phrase, a tab and the label") as error:
        read_sst2(folder)
    assert f"{folder / 'dev.tsv'}:3: " in one_line(error)


def test_glue_needs_more_phrases_than_are_held_out(tmp_path):
    with pytest.raises(DataError, match=f"has {GLUE_DEV} phrases"):
        read_sst2(glue(tmp_path, n=GLUE_DEV))


def test_the_tables_of_the_2013_release_are_refused_with_what_to_take(tmp_path):
    folder = write(tmp_path, dictionary_txt=["A good film .|7"], datasetSentences_txt=["1\tA good film ."])
    with pytest.raises(DataError, match=r"2013 release.*trainDevTestTrees_PTB.zip.*train.txt.*train.tsv") as error:
        read_sst2(folder)
    one_line(error)


def test_the_real_trees_give_the_papers_counts():
    data = prepare(SentimentDataConfig(path=str(real_data("sst", "trees").parent)))
    counts = {name: split.class_counts() for name, split in data.splits.items()}
    assert counts == {"train": (3310, 3310), "dev": (428, 444), "test": (912, 909)}
    whole = read_sst2(real_data("sst", "trees"), balance=False)
    assert whole["train"].class_counts() == (3310, 3610)


def test_the_real_glue_files():
    splits = read_sst2(real_data("sst2_glue"), balance=False)
    assert [len(split) for split in splits.values()] == [67349 - GLUE_DEV, GLUE_DEV, 872]
    assert splits["test"].class_counts() == (428, 444)


def test_glue_and_trees_hold_the_same_development_sentences():
    """GLUE's dev.tsv is the treebank's own dev split, in another order and spelling."""
    ours = read_sst2(real_data("sst", "trees"))["dev"]
    glue_test = read_sst2(real_data("sst2_glue"))["test"]
    known = {text.lower(): label for text, label in pairs(glue_test)}
    shared = [(known[text.lower()], label) for text, label in pairs(ours) if text.lower() in known]
    assert len(shared) > 800
    assert all(a == b for a, b in shared)
