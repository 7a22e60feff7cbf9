"""Files of data and weights that are damaged, truncated, hostile or JSON of another kind, for every loader of them.

``cases(seed, n)`` draws files, `KEPT` holds those that once broke something, ``check(case, folder)`` loads them. Case
27 of seed 3 again, from the folder ``tests``::

    python -m faults.loaders 3 27
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import random
import re
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from faults.damage import damaged, other_value
from faults.hostile import JSON, TEXTS
from jaxablate.config import ClassifierConfig, DataConfig, ModelConfig
from jaxablate.data import token_file
from jaxablate.data.corpus import CorpusTokenizer
from jaxablate.data.preparation import prepare
from jaxablate.data.sentiment.imdb import read_imdb
from jaxablate.data.sentiment.sst import GLUE_DEV, TREE_FILES, download_trees, read_sst2
from jaxablate.data.stories import TextSource
from jaxablate.data.tokenizer import WordTokenizer, load_tokenizer, train_bpe
from jaxablate.errors import JaxablateError
from jaxablate.interop import classifier_from_reference, objective_from_reference, transformer_from_reference
from jaxablate.interop.reference import _entries as transformer_entries
from jaxablate.interop.safr import _position_table
from jaxablate.interop.safr import _stored as classifier_entries

SECONDS = 20
"""How long a loader may take, on a busy machine."""
MEGABYTES = 1000
"""How much the process may grow by while it loads."""

Files = Mapping[str, bytes | None]
"""Path inside the folder -> content; None where the file is gone."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What a loader is given."""

    loader: str
    change: str
    """What was done to its files, for people."""
    files: Files
    remade: bool = False
    """Whether checksums are right again, so that nobody can tell that the data is another."""

    def __str__(self) -> str:
        return f"{self.loader}: {self.change}"


@dataclasses.dataclass(frozen=True)
class Loader:
    """A loader, its files as they should be, and hostile changes of them."""

    files: Callable[[], dict[str, bytes]]
    load: Callable[[Path], Any]
    """Loads them; its result can be compared."""
    sealed: bool = False
    """Whether damage to bytes is always noticed: the result is then the right one, or an error."""
    change: Callable[[random.Random], tuple[str, dict[str, bytes]]] | None = None
    """A change that damage to bytes would hardly make, such as one with a right checksum: what, and the files of it."""
    damaged: Callable[[str], bool] = lambda file: True
    """Whether a file may be damaged."""


def cases(seed: int, n: int) -> Iterator[Case]:
    """The first n cases of a seed; all loaders come in turn."""
    return (case(seed, number) for number in range(n))


def case(seed: int, number: int) -> Case:
    """One case of a seed."""
    rng = random.Random(f"{seed}/{number}")
    name = list(LOADERS)[number % len(LOADERS)]
    loader = LOADERS[name]
    files: dict[str, bytes | None] = dict(loader.files())
    if loader.change is not None and rng.random() < 0.5:
        change, changed = loader.change(rng)
        return Case(name, f"seed {seed}, case {number}: {change}", files | changed, remade=True)
    file = rng.choice(sorted(filter(loader.damaged, files)))
    damage = damaged(file, files[file] or b"", rng)
    return Case(name, f"seed {seed}, case {number}: {damage}", files | {file: damage.content})


def check(case: Case, folder: Path) -> str | None:
    """What broke when a case was loaded: another exception than one line for the user, a wait, memory, wrong data."""
    for name, content in case.files.items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    before = _largest_size()
    loader = LOADERS[case.loader]
    try:
        with _limited():
            result = loader.load(folder)
    except JaxablateError as error:
        broken = None if str(error).strip() else "an error without a message"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust code is no Exception
        broken = f"{type(error).__name__}: {error}"
    else:
        wrong = loader.sealed and not case.remade and result != _right(case.loader)
        broken = "wrong data" if wrong else None
    grown = _largest_size() - before
    return broken or (f"took {grown} MB" if grown > MEGABYTES else None)


def _largest_size() -> int:
    """Megabytes of memory that the process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


class _TooLongError(BaseException):
    """The limit of time is over."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Ends what takes too long, where signals can be had: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _TooLongError(f"over {SECONDS} s")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


@functools.cache
def _right(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        for file, content in LOADERS[name].files().items():
            path = Path(folder, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return LOADERS[name].load(Path(folder))


def _made(make: Callable[[Path], object]) -> Callable[[], dict[str, bytes]]:
    """The files that a function leaves in an empty folder, made once."""
    @functools.cache
    def files() -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
            return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*"))
                    if path.is_file() and path.suffix != ".lock"}
    return files


# Stories, token files, tokenizers.

STORIES = "".join(f"Tom has {i} balls. Sue has a é ball.\n<|endoftext|>\n" for i in range(12))


def _stories(path: Path) -> list[str]:
    source = TextSource(path / "stories.txt", path)
    return list(source.stories())


def _prepared(path: Path) -> tuple[str, str]:
    """Token files of the text, whatever became of what was made earlier; the text itself is not damaged."""
    data = prepare(DataConfig(source="text", train_path=str(path / "train.txt"), valid_path=str(path / "train.txt"),
                              cache_dir=str(path), tokenizer="bpe", bpe_vocab_size=270))
    return data.train.data_hash, data.tokenizer.fingerprint()


def _prepared_files(path: Path) -> None:
    (path / "train.txt").write_text(STORIES, encoding="utf-8")
    _prepared(path)


def _tokens(path: Path) -> tuple[str, list[int]]:
    file = token_file.open_token_file(path / "a.tokens")
    file.story_of(np.arange(file.n_tokens))
    return file.data_hash, file.windows([0], file.n_tokens)[0].tolist()


def _token_file(path: Path) -> None:
    record = token_file.SourceRecord(name="a.txt", size=10, mtime_ns=5, sha256="ab" * 32)
    token_file.write_token_file(path / "a.tokens", [[[1, 2, 3], [4]], [[], [5, 6]]], CorpusTokenizer(), record)


def _other_header(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """A header of other JSON, whose checksum is right."""
    whole = _TOKENS()["a.tokens"]
    start, length = token_file._PREAMBLE.size, struct.unpack_from("<I", whole, 12)[0]
    where, values = other_value(json.loads(whole[start : start + length]), rng)
    text = rng.choice((json.dumps(values).encode(), rng.choice(JSON)[:4000]))
    preamble = token_file._PREAMBLE.pack(token_file._MAGIC, 1, len(text), hashlib.sha256(text).digest())
    head = (preamble + text).ljust(token_file.HEADER_BYTES, b"\0")
    return f"header with {where} changed: {text[:60]!r}", {"a.tokens": head + whole[token_file.HEADER_BYTES :]}


def _tokenizer(path: Path) -> str:
    tokenizer = load_tokenizer(path)
    for text in ("Then, Rob and Sue", *([] if tokenizer.name == "corpus" else TEXTS)):
        tokenizer.decode(tokenizer.encode(text))
    return tokenizer.fingerprint()


# Labelled texts.

GOOD, BAD = "(3 (2 It) (4 (3 works) (2 .)))", "(0 (2 It) (1 fails))"


def _trees(path: Path) -> None:
    for name in TREE_FILES:
        (path / name).write_text(f"{GOOD}\n{BAD}\n" * 3)


def _glue(path: Path) -> None:
    rows = "".join(f"phrase {i} \t{i % 2}\n" for i in range(GLUE_DEV + 50))
    (path / "train.tsv").write_text(f"sentence\tlabel\n{rows}")
    (path / "dev.tsv").write_text("sentence\tlabel\ngood film \t1\nbad film \t0\n")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path / "trainDevTestTrees_PTB.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in TREE_FILES:
            packed.writestr(f"trees/{name}", f"{GOOD}\n{BAD}\n" * 3)


def _texts(splits: Any) -> dict[str, Any]:
    return {name: (split.texts, split.labels.tolist()) for name, split in splits.items()}


REVIEWS = {f"aclImdb/{half}/{kind}/{i}_{9 if kind == 'pos' else 2}.txt": f"{half} {kind} {i}<br />é".encode()
           for half in ("train", "test") for kind in ("pos", "neg") for i in range(6)}
BLOCK = tarfile.BLOCKSIZE


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Header of an archive's member, whatever size it claims."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member of an archive."""
    return tar_header(name, len(content), kind) + content + bytes(-len(content) % BLOCK)


def tar_gz(before: bytes = b"") -> dict[str, bytes]:
    """The archive of reviews, with other members first."""
    whole = before + b"".join(tar_member(name, content) for name, content in REVIEWS.items()) + bytes(2 * BLOCK)
    return {"a.tar.gz": gzip.compress(whole, 1, mtime=0)}


def _other_archive(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """An archive that was damaged or made hostile before it was packed."""
    kind = rng.choice((tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME,
                       tarfile.GNUTYPE_SPARSE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"?"))
    name = rng.choice(("aclImdb/README", "aclImdb/train/pos/77_9.txt", "x", "../x", "/x", "aclImdb/train/pos/.x",
                       rng.choice(TEXTS).replace("\0", "")[:90]))
    size = rng.choice((0, 1, 511, 512, 1 << 20, 1 << 33, 1 << 60, -1, -512))
    digits = rng.choice((b"1", b"9" * 20, b"1" * 5000))
    content = rng.choice((b"", b"text", digits + b" path=x\n", b"27 GNU.sparse.map=1,2,3,x\n", bytes(600)))
    try:
        first = tar_header(name.encode("utf-8", "replace").decode(), size, kind)
    except ValueError:
        first = tar_member("x", b"x")
    if rng.random() < 0.5:
        first = tar_member("x", content, kind)
    if rng.random() < 0.3:
        whole = bytearray(first + tar_member("aclImdb/train/pos/78_9.txt", b"more"))
        whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        first = bytes(whole)
    return f"archive with {first[:160].rstrip(bytes(1))!r} first", tar_gz(first)


# Weights.

MODEL = ModelConfig(vocab_size=7, context_length=5, d_model=4, d_mlp=6, n_heads=2, n_layers=2, ablation="both",
                    k_attention=3, k_neurons=5)
CLASSIFIER = ClassifierConfig(vocab_size=7, max_length=6, d_model=4, n_heads=2, n_layers=1, d_mlp=6, vmask_width=3)
MODEL_SETTINGS = {"num_heads": 2, "k_attention": 3, "k_neurons": 5, "ablation_processing": "soft-top-K-version-1",
                  "loss_coeff_base": 0.1, "loss_coeff_ablated": 0.9, "reconstruction_coeff": 0.1,
                  "reconstruction_loss_type": "MSE"}
CLASSIFIER_SETTINGS = {"num_heads": 2, "dropout": 0.1}


def transformer_arrays() -> dict[str, np.ndarray]:
    """A self-ablating transformer's state dict."""
    return _arrays(transformer_entries(MODEL))


def classifier_arrays() -> dict[str, np.ndarray]:
    """A SAFR classifier's state dict."""
    return _arrays(classifier_entries(CLASSIFIER)) | {"pos_encoder.pe": _position_table(CLASSIFIER)}


def _arrays(entries: Any) -> dict[str, np.ndarray]:
    return {entry.name: np.full(entry.reference_shape, i, np.float32) for i, entry in enumerate(entries)}


def npz(arrays: Mapping[str, Any], settings: str) -> dict[str, bytes]:
    """Weights and their settings as .npz."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays, config_json=settings)
    return {"a.npz": file.getvalue()}


def tensors(arrays: Mapping[str, Any], settings: str) -> dict[str, bytes]:
    """Weights and their settings as .safetensors."""
    return {"a.safetensors": safetensors.numpy.save(dict(arrays), {"config_json": settings})}


def _digest(read: tuple[Any, Any]) -> tuple[str, str]:
    config, params = read
    return repr(config), repr(params)


def _weights(read: Callable[..., Any], name: str, heads: dict[str, int]) -> Callable[[Path], Any]:
    def load(path: Path) -> Any:
        if read is transformer_from_reference:
            with contextlib.suppress(JaxablateError):
                objective_from_reference(path / name)
        return _digest(read(path / name, **heads))
    return load


def _other_weights(make: Callable[[], dict[str, np.ndarray]], settings: dict[str, Any],
                   write: Callable[[Mapping[str, Any], str], dict[str, bytes]]) -> Any:
    def change(rng: random.Random) -> tuple[str, dict[str, bytes]]:
        arrays, text = make(), json.dumps(settings)
        name = rng.choice(sorted(arrays))
        match rng.randrange(6):
            case 0:
                what, text = "settings", rng.choice(JSON).decode("utf-8", "replace")
            case 1:
                where, values = other_value(settings, rng)
                what, text = f"setting {where}", json.dumps(values)
            case 2:
                what, arrays[name] = f"shape of {name}", arrays[name][..., None]
            case 3:
                dtype = rng.choice(("float16", "float64", "int64", "bool", "uint8"))
                what, arrays[name] = f"{dtype} {name}", arrays[name].astype(dtype)
            case 4:
                other = re.sub(r"\d+", str(rng.choice((2, 10**6, 10**9, 10**18, 10**30))), f"{name}.0.x")
                what, arrays[other] = f"{name} named {other}", arrays.pop(name)
            case _:
                what = f"without {name}"
                del arrays[name]
        return what, write(arrays, text)
    return change



_TOKENS = _made(_token_file)
_PREPARED = _made(_prepared_files)
_TRANSFORMER = functools.partial(_weights, transformer_from_reference,
                                 heads={"n_heads": 2, "k_attention": 3, "k_neurons": 5})
_CLASSIFIER = functools.partial(_weights, classifier_from_reference, heads={"n_heads": 2})


def _no_text(file: str) -> bool:
    return not file.endswith(".txt")


LOADERS: dict[str, Loader] = {
    "stories": Loader(lambda: {"stories.txt": STORIES.encode()}, _stories),
    "token file": Loader(_TOKENS, _tokens, sealed=True, change=_other_header),
    "cache folder": Loader(_PREPARED, _prepared, sealed=True, damaged=_no_text),
    "cache folder without its text": Loader(
        lambda: {name: content for name, content in _PREPARED().items() if _no_text(name)}, _prepared, sealed=True),
    "byte pairs": Loader(_made(lambda path: train_bpe([STORIES], 270).save(path)), _tokenizer, sealed=True),
    "words": Loader(_made(lambda path: WordTokenizer(["a", "ball", "Tom"]).save(path)), _tokenizer, sealed=True),
    "words of the corpus": Loader(_made(lambda path: CorpusTokenizer().save(path)), _tokenizer, sealed=True),
    "trees": Loader(_made(_trees), lambda path: _texts(read_sst2(path))),
    "glue": Loader(_made(_glue), lambda path: _texts(read_sst2(path))),
    "zip of trees": Loader(_made(_zip), lambda path: _texts(read_sst2(download_trees(path, url="file:///none"))),
                           sealed=True),
    "reviews": Loader(lambda: dict(REVIEWS), lambda path: _texts(read_imdb(path))),
    "archive of reviews": Loader(tar_gz, lambda path: _texts(read_imdb(path / "a.tar.gz")), sealed=True,
                                 change=_other_archive),
    "transformer.npz": Loader(lambda: npz(transformer_arrays(), json.dumps(MODEL_SETTINGS)), _TRANSFORMER("a.npz"),
                              change=_other_weights(transformer_arrays, MODEL_SETTINGS, npz)),
    "transformer.safetensors": Loader(lambda: tensors(transformer_arrays(), json.dumps(MODEL_SETTINGS)),
                                      _TRANSFORMER("a.safetensors"),
                                      change=_other_weights(transformer_arrays, MODEL_SETTINGS, tensors)),
    "classifier.npz": Loader(lambda: npz(classifier_arrays(), json.dumps(CLASSIFIER_SETTINGS)), _CLASSIFIER("a.npz"),
                             change=_other_weights(classifier_arrays, CLASSIFIER_SETTINGS, npz)),
    "classifier.safetensors": Loader(lambda: tensors(classifier_arrays(), json.dumps(CLASSIFIER_SETTINGS)),
                                     _CLASSIFIER("a.safetensors"),
                                     change=_other_weights(classifier_arrays, CLASSIFIER_SETTINGS, tensors)),
}


def _npy(header: bytes, data: bytes = b"") -> bytes:
    """A .npy file with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def _npz_of(content: bytes, *, flags: int = 0, compression: int | None = None) -> dict[str, bytes]:
    """A .npz file of one member, whose headers may claim encryption or another compression."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.npy", content)
    archive = bytearray(file.getvalue())
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = archive.index(signature) + at
        archive[start] |= flags
        if compression is not None:
            struct.pack_into("<H", archive, start + 2, compression)
    return {"a.npz": bytes(archive)}


def _damaged_deflate() -> dict[str, bytes]:
    content = _npz_of(_npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (400,), }\n", bytes(range(256)) * 7))
    archive = bytearray(content["a.npz"])
    archive[60:90] = b"\xff" * 30
    return {"a.npz": bytes(archive)}


def _float8() -> bytes:
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0"


def _sealed_header(text: bytes) -> bytes:
    preamble = token_file._PREAMBLE.pack(token_file._MAGIC, 1, len(text), hashlib.sha256(text).digest())
    return (preamble + text).ljust(token_file.HEADER_BYTES, b"\0") + bytes(64)


@functools.cache
def kept() -> tuple[Case, ...]:
    """Cases that broke a loader once: a traceback, a wait, or more than its memory."""
    review = "aclImdb/train/pos/99_9.txt"
    archives = {
        "a giant member that is not read": tar_header("aclImdb/README", 1 << 60),
        "a review of 200 MB": tar_header(review, 200 << 20),
        "a record of 20 digits": tar_member("pax", b"99999999999999999999 path=x\n", tarfile.XHDTYPE),
        "a sparse map": tar_member("pax", b"27 GNU.sparse.map=1,2,3,x\n", tarfile.XHDTYPE),
        "a record of many digits": tar_member("pax", b"1" * 120_000, tarfile.XHDTYPE),
    }
    arrays = {
        "damaged deflate data": _damaged_deflate(),
        "a plain .npy": {"a.npz": _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", bytes(8))},
        "a giant shape": _npz_of(_npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }\n")),
        "a broken header": _npz_of(_npy(b"{'descr': '<f4', 'shape': (2,\n")),
        "encrypted": _npz_of(_npy(b"{}"), flags=1),
        "an unknown compression": _npz_of(_npy(b"{}"), compression=99),
        "settings too deep": npz(transformer_arrays(), "[" * 100_000),
        **{f"{name} = []": npz(transformer_arrays(), json.dumps({"num_heads": 2, name: []}))
           for name in ("ablation_processing", "ablation_mask_level")},
        "a layer of number 10^9": npz(transformer_arrays() | {"transformer.h.1000000000.x": np.zeros(1)}, "{}"),
    }
    classifiers = {"a layer of number 10^9": npz(classifier_arrays() | {"layers.1000000000.x": np.zeros(1)}, "{}")}
    tensor_files = {"float8": {"a.safetensors": _float8()},
                    "settings too deep": tensors(transformer_arrays(), "[" * 100_000)}
    headers = {text[:20].decode(): _sealed_header(text)
               for text in (b"null", b"5", b"[1, 2]", b"[" * 3000, b'{"source": 5}')}
    metadata = {"too deep": b"[" * 100_000, "a number for text": b'{"kind": "words", "name": "a", "fingerprint": 5}'}
    zipped = LOADERS["zip of trees"].files()["trainDevTestTrees_PTB.zip"]
    zipped = zipped[:50] + b"\xff" * 9 + zipped[59:]
    trees = {"deep": b"(3 " * 50_000 + b"\n", "a byte order mark": b"\xef\xbb\xbf(3 good)\n(1 bad)\n"}
    made = [
        *(("archive of reviews", what, tar_gz(first)) for what, first in archives.items()),
        *(("transformer.npz", what, files) for what, files in arrays.items()),
        *(("classifier.npz", what, files) for what, files in classifiers.items()),
        *(("transformer.safetensors", what, files) for what, files in tensor_files.items()),
        *(("token file", what, {"a.tokens": content}) for what, content in headers.items()),
        *(("words", what, {"tokenizer_meta.json": content}) for what, content in metadata.items()),
        *(("trees", what, {"train.txt": content}) for what, content in trees.items()),
        ("zip of trees", "damaged deflate data", {"trainDevTestTrees_PTB.zip": zipped}),
        ("reviews", "a file of macOS", {"aclImdb/train/pos/.DS_Store": b"\0\0\0\1Bud1"}),
        ("stories", "a million line ends", {"stories.txt": b"A" + b"\n" * 1_100_000 + b"B"}),
    ]
    return tuple(Case(loader, what, LOADERS[loader].files() | files, remade=True) for loader, what, files in made)


def main(arguments: list[str]) -> int:
    """Loads the cases of a seed, or one of them, and prints what broke."""
    seed, numbers = int(arguments[0]), arguments[1:]
    broken = 0
    for one in (case(seed, int(number)) for number in numbers) if numbers else cases(seed, 2000):
        with tempfile.TemporaryDirectory() as folder:
            if (what := check(one, Path(folder))) is not None:
                broken += 1
                print(f"{one}\n    {what}")
    print(f"{broken} broken")
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
