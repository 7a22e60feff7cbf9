"""SST-2 in its three layouts: what is read, and what is refused and how."""

import logging

import numpy as np
import pytest
from helpers.external import real_data

from jaxablate.config import SentimentDataConfig
from jaxablate.data.sentiment.prepare import prepare_sentiment
from jaxablate.data.sentiment.sst import GLUE_DEV, read_sst2
from jaxablate.data.sentiment.texts import LabelledTexts
from jaxablate.data.sentiment.trees import MalformedTree, parse_tree
from jaxablate.errors import DataError

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


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("(3 (2 It) (4 works)", "brackets not closed: 1"),
        ("(3 (2 It) (4 works", "brackets not closed: 2"),
        ("(3 (2 It) (4 works)))", "a bracket closes that was not opened"),
        (")", "a bracket closes that was not opened"),
        ("(5 (2 It) (4 works))", "label is '5', not 0..4"),
        ("(3 (2 It) (-1 works))", "label is '-1'"),
        ("(3 (2 It) (x works))", "label is 'x'"),
        ("((2 It) (2 works))", r"label is '\('"),
        ("(", "label is ''"),
        ("(3 (2 It) (4 ))", "a leaf is empty"),
        ("(3 ())", r"label is '\)'"),
        ("(3 (2 It works))", "a leaf is not one word"),
        ("(3 It (2 works))", "a leaf is not one word"),
        ("(3 (2 It) works)", "a leaf is not one word"),
        ("(3 good) .", "text outside the tree"),
        ("good", "text outside the tree"),
        ("(3 good) (3 good)", "text outside the tree"),
        ("", "the line is empty"),
        ("   ", "the line is empty"),
    ],
)
def test_a_malformed_tree_is_refused_by_name(line, wrong, tmp_path):
    with pytest.raises(MalformedTree, match=wrong):
        parse_tree(line)
    folder = trees(tmp_path, dev=[GOOD, BAD, line, GOOD])
    with pytest.raises(DataError, match=wrong) as error:
        read_sst2(folder)
    assert f"{folder / 'dev.txt'}:3: " in one_line(error)
    assert "mend this line" in one_line(error)


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
    assert {k: v.data_hash for k, v in plain.items()} == {k: v.data_hash for k, v in other.items()}


def test_balance_keeps_the_first_of_the_larger_class_of_the_training_split(tmp_path):
    many = [f"(4 good{i})" for i in range(5)]
    folder = trees(tmp_path, train=[*many[:2], "(0 a)", *many[2:], "(0 b)", "(0 c)"], dev=[*many, BAD])
    balanced, whole = read_sst2(folder), read_sst2(folder, balance=False)
    assert balanced["train"].texts == ("good0", "good1", "a", "good2", "b", "c")
    assert whole["train"].class_counts() == (3, 5)
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
    with pytest.raises(DataError, match=r"has no SST-2.*train.txt.*dictionary.txt.*train.tsv") as error:
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
    assert {k: v.data_hash for k, v in splits.items()} == {k: v.data_hash for k, v in again.items()}
    assert other["dev"].data_hash != splits["dev"].data_hash
    whole = read_sst2(folder, balance=False)
    assert sorted(whole["dev"].texts + whole["train"].texts) == sorted(f"phrase {i}" for i in range(GLUE_DEV + 100))
    assert all(label == int(text.split()[1]) % 2 for split in ("train", "dev") for text, label in pairs(whole[split]))


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("fine\t2", "label '2' is not 0 or 1"),
        ("fine\t-1", "label '-1' is not 0 or 1"),
        ("fine\tgood", "label 'good' is not 0 or 1"),
        ("fine\t", "label '' is not 0 or 1"),
        ("  \t1", "the text is empty"),
        ("fine", "wrong number of columns"),
        ("fine\t1\t1", "wrong number of columns"),
        ("", "wrong number of columns"),
    ],
)
def test_a_bad_row_of_glue_is_named(tmp_path, row, wrong):
    folder = glue(tmp_path, dev=["good\t1", row, "bad\t0"])
    with pytest.raises(DataError, match=wrong) as error:
        read_sst2(folder)
    assert f"{folder / 'dev.tsv'}:3: " in one_line(error)


def test_glue_needs_more_phrases_than_are_held_out(tmp_path):
    with pytest.raises(DataError, match=f"has {GLUE_DEV} phrases"):
        read_sst2(glue(tmp_path, n=GLUE_DEV))


RELEASE = {
    "datasetSentences.txt": [
        "sentence_index\tsentence",
        "1\tA good film .",
        "2\tA bad film -LRB- truly -RRB- .",
        "3\tA cafÃ© of clichÃ©s .",  # as the release writes an accent: its UTF-8 bytes read as Latin-1
        "4\tSo so .",
        "5\tThe best | ever",
        "6\tAwful .",
    ],
    "datasetSplit.txt": ["sentence_index,splitset_label", "1,1", "2,1", "3,2", "4,1", "5,3", "6,3"],
    "dictionary.txt": [
        "!|0", "A good film .|7", "A bad film ( truly ) .|1", "A café of clichés .|2", "So so .|3",
        "The best | ever|4", "Awful .|5", "of clichés|6",
    ],
    "sentiment_labels.txt": [
        "phrase ids|sentiment values", "0|0.5", "1|0.4", "2|0.3", "3|0.6", "4|0.98", "5|0.0", "6|0.2", "7|0.60001",
    ],
}
"""Six sentences in the release's four tables; scores lie on the borders: 0.4 is negative, 0.6 is neutral."""

TEST_POSITIVE = {
    "datasetSentences.txt": "7\tFine .", "datasetSplit.txt": "7,2", "dictionary.txt": "Fine .|8",
    "sentiment_labels.txt": "8|0.7",
}


def release(folder, **changes):
    """The release's tables; `changes` gives file name (with _ for .) -> function of its lines."""
    for name, lines in RELEASE.items():
        lines = [*lines, TEST_POSITIVE[name]]
        change = changes.get(name.replace(".", "_"), lambda found: found)
        write(folder, **{name.replace(".", "_"): change(lines)})
    return folder


def test_the_release_with_brackets_double_encoded_letters_and_borders(tmp_path):
    splits = read_sst2(release(tmp_path))
    assert pairs(splits["train"]) == [("A good film .", 1), ("A bad film -LRB- truly -RRB- .", 0)]
    assert pairs(splits["test"]) == [("A cafÃ© of clichÃ©s .", 0), ("Fine .", 1)]
    assert pairs(splits["dev"]) == [("The best | ever", 1), ("Awful .", 0)]


def test_sentences_nowhere_in_the_dictionary_are_refused_when_many(tmp_path):
    folder = release(tmp_path, dictionary_txt=lambda lines: [line for line in lines if not line.startswith("So so")])
    with pytest.raises(DataError, match=r"1 of 7 sentences of .* are not in dictionary.txt, at most 1% may") as error:
        read_sst2(folder)
    one_line(error)


def test_few_sentences_nowhere_are_left_out_with_one_warning(tmp_path, caplog):
    def many(make):
        return lambda lines: [*lines, *(make(i) for i in range(100, 220))]

    folder = release(
        tmp_path,
        datasetSentences_txt=lambda lines: [*many(lambda i: f"{i}\tWord {i}")(lines), "99\tOf no dictionary"],
        datasetSplit_txt=many(lambda i: f"{i},1"),
        dictionary_txt=many(lambda i: f"Word {i}|{i}"),
        sentiment_labels_txt=many(lambda i: f"{i}|0.{i % 2 * 9}"),
    )
    with caplog.at_level(logging.WARNING):
        splits = read_sst2(folder, balance=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 128 sentences of {folder} are not in dictionary.txt and are left out"]
    assert len(splits["train"]) == 122


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("sentiment_labels_txt", "9|1.5", "score 1.5 is not in 0..1"),
        ("sentiment_labels_txt", "9|nan", "score nan is not in 0..1"),
        ("sentiment_labels_txt", "9|good", "could not convert"),
        ("sentiment_labels_txt", "9", "wrong number of columns"),
        ("dictionary_txt", "no number", "wrong number of columns"),
        ("dictionary_txt", "a|b", "invalid literal"),
        ("datasetSplit_txt", "8,4", "split '4' is not 1, 2 or 3"),
        ("datasetSentences_txt", "8\t ", "the text is empty"),
        ("datasetSentences_txt", "8", "wrong number of columns"),
    ],
)
def test_a_bad_line_of_the_release_is_named(tmp_path, name, line, wrong):
    folder = release(tmp_path, **{name: lambda lines: [*lines, line]})
    path = folder / name.replace("_txt", ".txt")
    with pytest.raises(DataError, match=wrong) as error:
        read_sst2(folder)
    assert f"{path}:{len(path.read_text().splitlines())}: " in one_line(error)


@pytest.mark.parametrize("name", ["datasetSplit_txt", "sentiment_labels_txt"])
def test_a_sentence_without_split_or_score_is_refused(tmp_path, name):
    folder = release(tmp_path, **{name: lambda lines: lines[:-1]})
    with pytest.raises(DataError, match=f"{name.replace('_', '.')} has no line for number [78]"):
        read_sst2(folder)


@pytest.mark.parametrize("name", ["sentiment_labels.txt", "datasetSentences.txt", "datasetSplit.txt"])
def test_a_missing_table_of_the_release_is_named(tmp_path, name):
    (release(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=f"lacks {name} beside dictionary.txt"):
        read_sst2(tmp_path)


def test_the_hash_tells_texts_labels_and_borders_apart():
    def hashed(*found):
        return LabelledTexts.of("a", found).data_hash

    assert hashed(("ab", 0), ("c", 1)) == hashed(("ab", 0), ("c", 1))
    others = [[("ab", 1), ("c", 1)], [("a", 0), ("bc", 1)], [("c", 1), ("ab", 0)], [("ab", 0)]]
    assert len({hashed(("ab", 0), ("c", 1)), *(hashed(*other) for other in others)}) == 5


def test_the_real_trees_give_the_papers_counts():
    data = prepare_sentiment(SentimentDataConfig(path=str(real_data("sst", "trees").parent)))
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
