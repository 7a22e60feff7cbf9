"""python -m jaxablate.data: what it prints, its exit codes, and downloads from a server of the test's own."""

import contextlib
import http.server
import shutil
import threading

import pytest

from jaxablate.data import __main__ as cli
from jaxablate.data import download
from jaxablate.data.download import download_tinystories
from jaxablate.errors import DataError

EOT = "<|endoftext|>"
STORIES = "".join(f"Tom has {i} balls.\n{EOT}\n" for i in range(50)).encode()


@contextlib.contextmanager
def server(handle):
    """A web server on this machine that answers every GET with `handle(request)`; gives its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            handle(self)

        def log_message(self, *args):
            """Nothing into the test's output."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}/files"
        finally:
            web.shutdown()
            thread.join()


def answer(content, length=None, status=200):
    def handle(request):
        request.send_response(status)
        request.send_header("Content-Length", str(len(content) if length is None else length))
        request.end_headers()
        request.wfile.write(content)

    return handle


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock")) if folder.exists() else []


def test_download_is_whole_reported_and_done_once(tmp_path):
    asked, reports = [], []

    def handle(request):
        asked.append(request.path)
        answer(STORIES)(request)

    with server(handle) as url:
        for _ in range(2):
            path = download_tinystories(tmp_path / "new", "valid", url=url, report=lambda *r: reports.append(r))
    assert path.read_bytes() == STORIES
    assert asked == ["/files/TinyStories-valid.txt"]
    assert reports[-1] == ("downloading TinyStories-valid.txt", len(STORIES), len(STORIES))
    assert visible(tmp_path / "new") == ["TinyStories-valid.txt"]


BROKEN = {
    "not found": (answer(b"no", status=404), "cannot be downloaded"),
    "cut off": (answer(STORIES, length=len(STORIES) + 100), "ended after|cannot be downloaded"),
    "empty": (answer(b""), "ended after 0 of 0 bytes"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_download_leaves_nothing(tmp_path, kind):
    handle, message = BROKEN[kind]
    with server(handle) as url, pytest.raises(DataError, match=message):
        download_tinystories(tmp_path, "train", url=url)
    assert visible(tmp_path) == []


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(download, "TINYSTORIES_URL", "http://127.0.0.1:9/files")


@pytest.mark.parametrize("command", ["prepare", "download"])
def test_without_file_and_network_one_line_says_what_to_put_where(tmp_path, capsys, offline, command):
    more = ["--tokenizer", "bpe"] if command == "prepare" else []
    assert cli.main([command, "--cache-dir", str(tmp_path / "data"), *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: TinyStories-train.txt is not at {tmp_path}/data/TinyStories-train.txt and cannot")
    assert f"then put it at {tmp_path}/data/TinyStories-train.txt" in error
    assert visible(tmp_path / "data") == []


def test_prepare_downloads_what_is_missing(tmp_path, capsys, monkeypatch):
    with server(answer(STORIES)) as url:
        monkeypatch.setattr(download, "TINYSTORIES_URL", url)
        assert cli.main(["prepare", "--cache-dir", str(tmp_path), "--tokenizer", "bpe", "--bpe-vocab-size", "265"]) == 0
    out = capsys.readouterr().out
    assert "tokenizer bpe-265: 265 ids" in out
    assert "train:        50 stories" in out
    monkeypatch.setattr(download, "TINYSTORIES_URL", "http://127.0.0.1:9/files")
    (tmp_path / "TinyStories-train.txt").unlink()
    assert cli.main(["prepare", "--cache-dir", str(tmp_path), "--tokenizer", "bpe", "--bpe-vocab-size", "265"]) == 0


def test_prepare_the_embedded_corpus_and_show_it(tmp_path, capsys):
    arguments = ["--source", "embedded", "--tokenizer", "corpus", "--embedded-stories", "20", "--cache-dir"]
    assert cli.main(["prepare", *arguments, str(tmp_path)]) == 0
    paths = sorted(str(p) for p in tmp_path.glob("*.tokens"))
    assert cli.main(["info", *paths]) == 0
    out = capsys.readouterr().out
    assert "20 stories" in out and "verified" in out and "fingerprint" in out
    bracketed = tmp_path / "e[k=2]" / "dd[" / "a" / "b]:x:.tokens"
    bracketed.parent.mkdir(parents=True)
    shutil.copy(paths[0], bracketed)
    assert cli.main(["info", str(bracketed)]) == 0
    assert str(bracketed) in "".join(capsys.readouterr().out.split())


def test_what_a_user_can_mend_is_one_line(tmp_path, capsys):
    (tmp_path / "a.tokens").write_bytes(b"garbage")
    damaged = ["info", str(tmp_path / "a.tokens")], f"{tmp_path}/a.tokens is not a token file"
    unfit = ["prepare", "--source", "embedded"], "tokenizer='gpt2' does not fit source='embedded'"
    for arguments, message in (damaged, unfit):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_progress_is_drawn_on_a_terminal_only(capsys):
    from rich.console import Console

    from jaxablate.data.progress import progress_report

    for terminal, expected in ((True, "reading a"), (False, "")):
        with open("/dev/null", "w") as nothing:
            console = Console(file=nothing, force_terminal=terminal, record=True)
            with progress_report(console) as report:
                report("reading a", 1, 2)
                report("waiting", 0, 0)
        assert expected in console.export_text()
