"""The hub, with a stand-in for its endpoint that the real huggingface_hub talks to."""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as hf
import pytest
import torch

from patchsae_lib.__main__ import main
from patchsae_lib.interop.autoencoders import load_sae, read_config, save_sae
from patchsae_lib.interop.files import WEIGHTS
from patchsae_lib.interop.hub import parse
from patchsae_lib.interop.saelens import write_saelens
from patchsae_lib.sae import SAE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Z = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class Hub:
    """One repository, `me/saes`, on this machine: its files, what was asked, what was uploaded."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.files: dict[str, bytes] = {}
        self.got: list[str] = []
        self.branches = ["main", "v1", COMMIT]
        self.private = False

    def add(self, folder: Path, inside: str = "") -> None:
        for path in folder.iterdir():
            self.files[f"{inside}{path.name}"] = path.read_bytes()


class Handler(BaseHTTPRequestHandler):
    """The requests that huggingface_hub makes for small files; 404 to all else."""

    hub: Hub

    def log_message(self, *_args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        if found := re.fullmatch(r"/me/saes/resolve/(.+?)/(.+)", path):
            if found[1] in self.hub.branches and found[2] in self.hub.files:
                if self.command == "GET":
                    self.hub.got.append(found[2])
                return self.answer(self.hub.files[found[2]])
        elif found := re.fullmatch(r"/api/models/me/saes/(?:revision/(.+)|tree/.+)", path):
            if found[1] is None:
                return self.json(
                    [
                        {"type": "file", "path": p, "size": len(b), "oid": digest(b)}
                        for p, b in self.hub.files.items()
                    ]
                )
            if found[1] in self.hub.branches:
                return self.json({"id": "me/saes", "sha": COMMIT})
            return self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        return self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)  # for privacy in one of two ways
            if asked["name"] != "saes":
                return self.answer(b"{}", 403)
            self.hub.private = asked.get("visibility") == "private" or asked.get("private", False)
            return self.json({"url": f"{self.hub.endpoint}/me/saes"})
        if self.path == "/api/models/me/saes/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self.json({"files": [{"path": name, **mode} for name in names]})
        if self.path == "/api/models/me/saes/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.hub.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.hub.endpoint}/me/saes/commit/{COMMIT}"
            return self.json({"success": True, "commitOid": COMMIT, "commitUrl": url})
        return self.answer(b"{}", 404)

    def json(self, value: object) -> None:
        self.answer(json.dumps(value).encode())

    def answer(self, body: bytes, status: int = 200, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}
        for name, value in (headers | {"ETag": f'"{digest(body)}"'} | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        Handler.hub = Hub(endpoint)
        # These are read from the environment when huggingface_hub is imported.
        monkeypatch.setattr(hf, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hf, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hf, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_no_one")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Handler.hub
        server.shutdown()


@pytest.fixture
def sae() -> SAE:
    return SAE(6, 20, seed=1).eval().requires_grad_(False)


def test_an_sae_on_the_hub(hub: Hub, sae: SAE, tmp_path: Path, capsys) -> None:
    write_saelens(tmp_path / "lens", sae, {"model_name": "clip"})
    hub.add(tmp_path / "lens", "block/2/")
    hub.files |= {"block/2/big.bin": b"0" * 9_000, "block/2/model.py": b"", "README.md": b"hello"}
    assert torch.equal(load_sae("hf://me/saes/block/2").encode(Z), sae.encode(Z))
    said = capsys.readouterr().out
    assert "downloading from me/saes: block/2/cfg.json (0.0 MB)" in said
    assert "block/2/sae_weights.safetensors (0.0 MB)" in said
    assert sorted(hub.got) == ["block/2/cfg.json", "block/2/sae_weights.safetensors"]
    # a second time everything is in the cache
    for inside in ("", "/cfg.json", "/sae_weights.safetensors"):
        assert load_sae(f"hf://me/saes/block/2{inside}@v1").d_sae == 20
    assert read_config("hf://me/saes/block/2")["model_name"] == "clip"
    assert len(hub.got) == 2
    assert "downloading" not in capsys.readouterr().out


def test_a_file_by_its_name_or_the_one_that_is_named_like_an_sae(
    hub: Hub, sae: SAE, tmp_path: Path
) -> None:
    for name in ("any_name", "sae"):
        save_sae(tmp_path / "files" / f"{name}.safetensors", sae, {"name": name})
    hub.add(tmp_path / "files")
    assert read_config("hf://me/saes/any_name.safetensors") == {"name": "any_name"}
    assert hub.got == ["any_name.safetensors"]
    assert read_config("hf://me/saes@v1") == {"name": "sae"}


def test_a_folder_in_which_nothing_is_named_like_an_sae(hub: Hub) -> None:
    hub.files["any_name.safetensors"] = b"0"
    with pytest.raises(FileNotFoundError, match=r"has no sae_weights.*: give the path of a file"):
        load_sae("hf://me/saes")
    assert not hub.got


def test_without_a_network_the_cache_is_enough(
    hub: Hub, sae: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sae(tmp_path / "files" / "sae.safetensors", sae)
    hub.add(tmp_path / "files")
    load_sae("hf://me/saes")
    monkeypatch.setattr(hf, "HF_HUB_OFFLINE", True)
    assert load_sae("hf://me/saes").d_sae == 20
    with pytest.raises(FileNotFoundError, match=r"hf://me/other is neither cached nor to be had"):
        load_sae("hf://me/other")


@pytest.mark.parametrize("address", ["hf://me/nothing", "hf://me/saes@v9"])
def test_what_is_not_there(address: str, hub: Hub) -> None:
    with pytest.raises(FileNotFoundError, match=f"{address} is neither cached nor to be had"):
        load_sae(address)


def test_addresses() -> None:
    assert parse("hf://me/saes/") == ("me/saes", "", None)
    assert parse("hf://me/saes/a/b.pt@refs/pr/1") == ("me/saes", "a/b.pt", "refs/pr/1")
    for address in ("hf://me", "me/saes", "hf:///saes", "hf://me/saes@"):
        with pytest.raises(ValueError, match=r"is not hf://owner/repo"):
            parse(address)


@pytest.mark.parametrize("inside", ["", "/block/2"])
def test_push(inside: str, hub: Hub, sae: SAE, tmp_path: Path, capsys) -> None:
    write_saelens(tmp_path / "lens", sae)
    assert main(["push", str(tmp_path / "lens"), f"hf://me/saes{inside}"]) == 0
    said = capsys.readouterr().out
    assert "uploading to me/saes: cfg.json (0.0 MB), sae_weights.safetensors (0.0 MB)" in said
    assert f"{hub.endpoint}/me/saes/commit/{COMMIT}" in said
    assert hub.private
    assert len(hub.files) == 2
    assert torch.equal(load_sae(f"hf://me/saes{inside}").W_dec, sae.W_dec)


def test_a_file_of_ours_is_pushed_and_a_pickle_or_half_an_sae_is_not(
    hub: Hub, sae: SAE, tmp_path: Path, capsys
) -> None:
    save_sae(tmp_path / "sae.safetensors", sae)
    assert main(["push", str(tmp_path / "sae.safetensors"), "hf://me/saes"]) == 0
    assert hub.files.keys() == {"sae.safetensors"}
    torch.save({"state_dict": sae.state_dict()}, tmp_path / "pickle.safetensors")
    (tmp_path / "text").write_text("hello")
    write_saelens(tmp_path / "lens", sae)
    refused = {"pickle.safetensors": "is no file of ours", "text": "neither", "none": "no auto"}
    refused |= {f"lens/{name}": "no file of ours" for name in ("cfg.json", WEIGHTS[0])}
    for name, said in refused.items():
        assert main(["push", str(tmp_path / name), "hf://me/saes"]) == 1
        assert said in capsys.readouterr().err
    assert len(hub.files) == 1
    for address, said in (("hf://me/other", "not uploaded"), ("me/saes", "is not hf://")):
        assert main(["push", str(tmp_path / "sae.safetensors"), address]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.skipif(
    "PATCHSAE_HUB" not in os.environ,
    reason="needs the network: set PATCHSAE_HUB to the hf:// address of an SAE",
)
def test_the_real_hub() -> None:
    sae = load_sae(os.environ["PATCHSAE_HUB"])
    assert (sae.encode(torch.randn(3, sae.d_vit)) > 0).any()
