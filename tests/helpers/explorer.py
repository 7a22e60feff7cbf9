"""What a page of the explorer holds, read as a browser would."""

import base64
import gzip
import json
import re
from pathlib import Path


def read_page(path):
    """The manifest of a page, and its blobs in order, from inside it or from the folder beside it."""
    text = Path(path).read_text()
    manifest = json.loads(re.search(r'<script type="application/json" id="manifest">(.*?)</script>', text, re.S)[1])
    packed = re.findall(r'<script type="application/octet-stream" id="blob-\d+">(.*?)</script>', text)
    if manifest["folder"]:
        scripts = sorted((Path(path).parent / manifest["folder"]).iterdir(), key=lambda p: int(p.stem.split("-")[1]))
        packed = [re.fullmatch(r'explorerBlob\(\d+, "(.*)"\);\n', x.read_text())[1] for x in scripts]
    return manifest, [json.loads(gzip.decompress(base64.b64decode(x))) for x in packed]


def shown_results(path):
    """Results of the first run of a page."""
    manifest, blobs = read_page(path)
    return blobs[manifest["runs"][0]["results"]]


def shown_titles(path):
    """Titles of all panels of the first run of a page."""
    return [panel["title"] for suite in shown_results(path)["suites"].values() for panel in suite["panels"]]
