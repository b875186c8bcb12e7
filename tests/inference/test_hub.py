"""Segmenters to and from the Hub: its own client against a small server of its interface."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("huggingface_hub")

SHA = "0123456789abcdef0123456789abcdef01234567"

USE = """
import torch
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.nn import DeepLabV2
from pgnn_geo.inference.segmenter import Segmenter

torch.manual_seed(0)
network = DeepLabV2("vgg_tiny", num_classes=2, weights=None, hidden_channels=8)
segmenter = Segmenter(network, ["cat", "dog"], SupervisionLedger(tags="csv"))
print(segmenter.push_to_hub("owner/cats"))
other = Segmenter.from_pretrained("owner/cats")
image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
assert torch.equal(segmenter.predict(image), other.predict(image))
assert other.classes == ("cat", "dog") and other.ledger == segmenter.ledger
try:
    Segmenter.from_pretrained("owner/dogs")
except InputError as error:
    print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """The few addresses that an upload and a download ask for; files live in memory."""

    files: dict[str, bytes]

    def log_message(self, *args):
        pass

    def answer(self, value=b"", status=200, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = f"http://{self.headers['Host']}/owner/cats"
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": name, **plain} for name in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            self.answer({"commitUrl": f"{url}/commit/{SHA}", "commitOid": SHA})
        else:  # create the repository
            self.answer({"url": url, "name": "owner/cats"})

    def do_GET(self):
        path, _, name = self.path.split("?")[0].partition(f"/resolve/{SHA}/")
        if "owner/cats" not in path:
            self.answer({"error": "no such repository"}, 404, X_Error_Code="RepoNotFound")
        elif name in self.files:
            etag = f'"{hashlib.sha1(self.files[name]).hexdigest()}"'
            self.answer(self.files[name], ETag=etag, X_Repo_Commit=SHA)
        elif "/tree/" in path:
            rows = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in self.files.items()
            ]
            self.answer(rows)
        elif name:
            self.answer(status=404, X_Error_Code="EntryNotFound")
        else:
            names = [{"rfilename": name} for name in self.files]
            self.answer({"id": "owner/cats", "sha": SHA, "siblings": names, "private": False})

    do_HEAD = do_GET


def test_push_and_pull(tmp_path):
    handler = type("Handler", (Hub,), {"files": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
        }
        result = subprocess.run(
            [sys.executable, "-c", USE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        server.shutdown()
    assert result.returncode == 0, result.stderr
    assert set(handler.files) == {"model.safetensors", "config.json", "README.md"}
    address, refused = result.stdout.splitlines()[0], result.stdout
    assert address.endswith(f"/owner/cats/commit/{SHA}")
    assert "There is no folder owner/dogs" in refused
