"""IMDB from its archive and from its folder: the same; and archives that are unsafe, damaged or incomplete."""

import gzip
import io
import os
import tarfile
import time
from pathlib import Path

import pytest
from helpers.external import real_data

from jaxablate.data.sentiment import imdb
from jaxablate.data.sentiment.imdb import read_imdb
from jaxablate.errors import ConfigError, DataError

FOLDERS = [f"{half}/{polarity}" for half in ("train", "test") for polarity in ("neg", "pos")]


def reviews(n=10):
    """Names below aclImdb -> reviews, n a folder; the order of numbers is not that of names."""
    return {
        f"{folder}/{number}_{9 if folder.endswith('pos') else 2}.txt": f"{folder} review<br /><br />{number}é "
        for folder in FOLDERS
        for number in range(n, 0, -1)
    }


EXTRAS = {"README": "about", "imdb.vocab": "the", "train/urls_pos.txt": "http", "train/unsup/0_0.txt": "unlabelled",
          "train/labeledBow.feat": "9 0:9"}


def member(name, content="text", kind=tarfile.REGTYPE, target=""):
    content = content.encode()
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, io.BytesIO(content)


def pack(path, files, others=(), mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            archive.addfile(*member(f"aclImdb/{name}", content))
        for other in others:
            archive.addfile(*other)
    return path


def unpack(folder, files):
    for name, content in files.items():
        path = folder / "aclImdb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def everything(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def contents(splits):
    return {name: (split.texts, split.labels.tolist()) for name, split in splits.items()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folders = [member(f"aclImdb/{name}", kind=tarfile.DIRTYPE) for name in ("", *FOLDERS)]
    return pack(tmp_path_factory.mktemp("imdb") / "aclImdb_v1.tar.gz", EXTRAS | reviews(), folders)


def test_splits_order_and_cleaning(archive):
    splits = read_imdb(archive)
    assert {name: split.class_counts() for name, split in splits.items()} == {
        "train": (8, 8), "dev": (2, 2), "test": (10, 10)}
    expected = [f"test/{polarity} review  {number}é" for polarity in ("pos", "neg") for number in range(1, 11)]
    assert list(splits["test"].texts) == expected
    assert splits["test"].labels.tolist() == [1] * 10 + [0] * 10
    both = sorted(splits["train"].texts + splits["dev"].texts)
    assert both == sorted(text.replace("test", "train") for text in expected)
    for split in (splits["train"], splits["dev"]):
        found = [(text.split()[0] == "train/neg", int(text.split()[-1][:-1])) for text in split.texts]
        assert found == sorted(found)
        assert [not negative for negative, _ in found] == split.labels.astype(bool).tolist()


def test_archive_folder_and_its_parent_are_the_same(archive, tmp_path):
    unpack(tmp_path, EXTRAS | reviews())
    expected = contents(read_imdb(archive))
    assert contents(read_imdb(tmp_path)) == expected
    assert contents(read_imdb(tmp_path / "aclImdb")) == expected


def test_the_order_of_members_does_not_matter(archive, tmp_path):
    backwards = dict(reversed(reviews().items()))
    assert contents(read_imdb(pack(tmp_path / "a.tar.gz", backwards))) == contents(read_imdb(archive))


def test_the_seed_decides_what_is_held_out_and_nothing_else(archive):
    first, again, other = (read_imdb(archive, split_seed=seed) for seed in (0, 0, 1))
    assert contents(first) == contents(again)
    assert set(first["dev"].texts) != set(other["dev"].texts)
    assert first["test"].texts == other["test"].texts
    for splits in (first, other):
        assert not set(splits["dev"].texts) & set(splits["train"].texts)


def test_nothing_is_unpacked(archive):
    before = everything(archive.parent)
    read_imdb(archive)
    assert everything(archive.parent) == before


UNSAFE = {
    "parent": member("../evil.txt"),
    "parent-inside": member("aclImdb/train/pos/../../../evil_9.txt"),
    "absolute": member("/tmp/jaxablate-evil.txt"),
    "backslash": member("aclImdb\\..\\evil.txt"),
    "symlink": member("aclImdb/train/pos/99_9.txt", kind=tarfile.SYMTYPE, target="/etc/passwd"),
    "hardlink": member("aclImdb/train/pos/99_9.txt", kind=tarfile.LNKTYPE, target="aclImdb/README"),
    "device": member("aclImdb/null", kind=tarfile.CHRTYPE),
    "fifo": member("aclImdb/pipe", kind=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_archive_is_refused_and_nothing_written(tmp_path, name, first):
    info, content = UNSAFE[name]
    content.seek(0)
    path = tmp_path / "inside" / "evil.tar.gz"
    path.parent.mkdir()
    if first:
        pack(path, {}, [(info, content)])
    else:
        pack(path, reviews(), [(info, content)])
    before = everything(tmp_path)
    with pytest.raises(DataError, match="is unsafe") as error:
        read_imdb(path)
    assert "\n" not in str(error.value)
    assert repr(info.name) in str(error.value)
    assert everything(tmp_path) == before
    assert not Path("/tmp/jaxablate-evil.txt").exists()


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_a_missing_folder_is_named(tmp_path, folder, packed):
    files = {name: text for name, text in reviews().items() if not name.startswith(folder)}
    path = pack(tmp_path / "a.tar.gz", files) if packed else unpack(tmp_path, files)
    with pytest.raises(DataError, match=f"has no reviews in aclImdb/{folder};"):
        read_imdb(path)


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("train/pos/x_9.txt", "good", "is not named ID_RATING.txt"),
        ("train/pos/77.txt", "good", "is not named ID_RATING.txt"),
        ("test/neg/77_11.txt", "good", "is not named ID_RATING.txt"),
        ("test/neg/77_2.text", "good", "is not named ID_RATING.txt"),
        ("train/neg/5_3.txt", "good", "has the number of another review in train/neg"),
        ("train/neg/77_3.txt", "", "aclImdb/train/neg/77_3.txt is empty"),
        ("train/neg/77_3.txt", " <br /><br />\n", "aclImdb/train/neg/77_3.txt is empty"),
    ],
)
@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_a_bad_review_is_named(tmp_path, name, text, wrong, packed):
    files = reviews() | {name: text}
    path = pack(tmp_path / "a.tar.gz", files) if packed else unpack(tmp_path, files)
    with pytest.raises(DataError, match=wrong) as error:
        read_imdb(path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_review_that_is_no_text_is_refused(tmp_path):
    unpack(tmp_path, reviews())
    (tmp_path / "aclImdb" / "test" / "pos" / "3_9.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"aclImdb/test/pos/3_9.txt is not UTF-8 text \(byte 3\)"):
        read_imdb(tmp_path)


def test_too_few_reviews_to_hold_any_out(tmp_path):
    with pytest.raises(DataError, match="has 4 reviews of a class to train on; at least 5 are needed"):
        read_imdb(unpack(tmp_path, reviews(4)))


def test_what_is_not_there_or_no_archive(tmp_path):
    with pytest.raises(DataError, match="does not exist; give data.path aclImdb_v1.tar.gz"):
        read_imdb(tmp_path / "none.tar.gz")
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(DataError, match="is damaged or no tar.gz archive"):
        read_imdb(tmp_path / "text.tar.gz")
    with pytest.raises(DataError, match="is damaged or no tar.gz archive"):
        read_imdb(pack(tmp_path / "plain.tar.gz", reviews(), mode="w"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_archive_is_refused(archive, tmp_path, share):
    content = archive.read_bytes()
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="is damaged"):
        read_imdb(path)


def test_a_flipped_bit_is_refused_or_changes_nothing(archive, tmp_path):
    """Some copies of bytes may be taken from either of two places, and the archive's name in its header is not used."""
    content, expected, refused = bytearray(archive.read_bytes()), contents(read_imdb(archive)), 0
    for place in range(0, len(content), 7):
        content[place] ^= 1
        (tmp_path / "flipped.tar.gz").write_bytes(content)
        try:
            assert contents(read_imdb(tmp_path / "flipped.tar.gz")) == expected
        except DataError:
            refused += 1
        content[place] ^= 1
    assert refused > 100


def test_a_header_damaged_before_packing_is_refused(tmp_path):
    """gzip's checksum is right here; tarfile alone would take the archive to end at the damage."""
    plain = pack(tmp_path / "a.tar", reviews(), mode="w").read_bytes()
    header = plain.rindex(b"aclImdb/test/pos/1_9.txt")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain[:header] + b"\xff" * 100 + plain[header + 100 :]))
    with pytest.raises(DataError, match="is damaged"):
        read_imdb(tmp_path / "a.tar.gz")


def header(name, size, kind=tarfile.REGTYPE):
    """A member's header, whatever size it claims."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content):
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)


def pax(record):
    return header("pax", len(record), tarfile.XHDTYPE) + padded(record)


REVIEW = header("aclImdb/train/pos/99_9.txt", 4) + padded(b"good")
HOSTILE = {
    "a giant member that is not read": (header("aclImdb/README", 1 << 60), "it ends within a member"),
    "a giant extended header": (header("pax", 1 << 60, tarfile.XHDTYPE), "it ends within a member"),
    "a giant long name": (header("././@LongLink", 1 << 60, tarfile.GNUTYPE_LONGNAME), "it ends within a member"),
    "a giant folder": (header("aclImdb/train", 1 << 60, tarfile.DIRTYPE), None),
    "a negative size": (header("aclImdb/README", -512), "size is negative"),
    "a giant review": (header("aclImdb/train/pos/99_9.txt", 200 << 20), "a review has at most 1048576"),
    "a record of 20 digits": (pax(b"99999999999999999999 path=x\n") + REVIEW, None),
    "a record of a sparse map": (pax(b"27 GNU.sparse.map=1,2,3,x\n" + b"22 GNU.sparse.major=0\n") + REVIEW, None),
    "a record of many digits": (pax(b"1" * 120_000) + REVIEW, None),
    "a sparse file": (header("aclImdb/train/pos/99_9.txt", 512, tarfile.GNUTYPE_SPARSE) + bytes(512), "is unsafe"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_ends_soon_with_the_reviews_or_one_error(tmp_path, kind):
    """Sizes that nothing has, seeks that never end, quadratic reading, errors of tarfile's own; all of about 1 KB."""
    head, message = HOSTILE[kind]
    whole = b"".join(header(f"aclImdb/{name}", len(text.encode())) + padded(text.encode())
                     for name, text in reviews().items())
    path, start = tmp_path / "a.tar.gz", time.process_time()
    path.write_bytes(gzip.compress(head + whole + bytes(1024), compresslevel=1))
    if message is None:
        assert sum(map(len, read_imdb(path).values())) == 40 + (REVIEW in head)
    else:
        with pytest.raises(DataError, match=message) as error:
            read_imdb(path)
        assert "\n" not in str(error.value)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_reviews_have_a_limit_each_and_together(tmp_path, monkeypatch, packed):
    path = pack(tmp_path / "a.tar.gz", reviews()) if packed else unpack(tmp_path, reviews())
    size = sum(len(text.encode()) for text in reviews().values())
    monkeypatch.setattr(imdb, "_LARGEST_SET", size)
    read_imdb(path)
    monkeypatch.setattr(imdb, "_LARGEST_SET", size - 1)
    with pytest.raises(DataError, match=f"has over {size - 1} bytes of reviews"):
        read_imdb(path)
    monkeypatch.setattr(imdb, "_LONGEST_REVIEW", 20)
    with pytest.raises(DataError, match=r"1?\d_[29].txt (cannot be read .it has more than 20|has \d+) bytes"):
        read_imdb(path)


def test_an_archive_of_endless_members_is_refused(archive, monkeypatch):
    """A megabyte can hold two million empty ones."""
    monkeypatch.setattr(imdb, "_MOST_MEMBERS", 40)
    with pytest.raises(DataError, match="it has over 40 members"):
        read_imdb(archive)


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_files_that_a_file_manager_leaves_are_passed_over(archive, tmp_path, packed):
    hidden = {"train/pos/.DS_Store": "\0Bud1", "train/pos/._1_9.txt": "\0\5", "test/neg/.hidden": ""}
    path = pack(tmp_path / "a.tar.gz", reviews() | hidden) if packed else unpack(tmp_path, reviews() | hidden)
    assert contents(read_imdb(path)) == contents(read_imdb(archive))


def test_a_byte_order_mark_is_no_part_of_a_review(archive, tmp_path):
    marked = {name: "\ufeff" + text for name, text in reviews().items()}
    assert contents(read_imdb(unpack(tmp_path, marked))) == contents(read_imdb(archive))


def test_a_pipe_or_device_among_the_reviews_is_refused(tmp_path):
    unpack(tmp_path, reviews())
    os.symlink("/dev/zero", tmp_path / "aclImdb" / "train" / "pos" / "77_9.txt")
    with pytest.raises(DataError, match=r"77_9.txt cannot be read \(it is a pipe or a device, not a file\)"):
        read_imdb(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    with pytest.raises(DataError, match="not a file"):
        read_imdb(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="shorten it"):
        read_imdb(tmp_path / ("x" * 300))


def test_progress_is_reported(tmp_path):
    seen = []
    read_imdb(pack(tmp_path / "a.tar.gz", reviews(300)), report=lambda *what: seen.append(what))
    assert seen == [("reading a.tar.gz", 1000, 0)]


def test_the_real_archive():
    path = real_data("imdb", "aclImdb_v1.tar.gz")
    start = time.process_time()
    splits = read_imdb(path)
    assert time.process_time() - start < 20
    assert {name: split.class_counts() for name, split in splits.items()} == {
        "train": (10000, 10000), "dev": (2500, 2500), "test": (12500, 12500)}
    assert not any("<br />" in text for split in splits.values() for text in split.texts)
