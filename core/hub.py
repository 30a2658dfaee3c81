"""Folders in the Hugging Face format, on disk and on the hub, read as they lie there and executed never."""

import errno
import fcntl
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

import torch
from torch import Tensor

from core import checkpoint, disk
from core.files import read_json
from core.values import nearest

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def read_weights(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as f:
        if f.read(64).startswith(b"version https://git-lfs"):
            raise ValueError(f"{path} is a pointer of git-lfs, not the weights: git lfs pull fetches them")
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as e:
            raise ValueError(f"{path} is damaged: {e}") from None
    weights = checkpoint.load_data(path)
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise ValueError(f"{path} holds something else than weights by name")
    return weights


def read_folder(folder: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """Config and weights as they lie there, theirs; safetensors before pickles, in one file or in parts."""
    folder = Path(folder)
    config = read_json(folder / "config.json")
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder} holds no weights: {' or '.join(FILES)}")
    if found.suffix != ".json":
        return config, read_weights(found)
    parts, weights = read_json(found).get("weight_map"), {}
    if not isinstance(parts, dict):
        raise ValueError(f"{found} has no weight_map")
    for name in sorted({str(v) for v in parts.values()}):
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")) or not (folder / name).is_file():
            raise ValueError(f"{found} names the part {name!r}, which is no file beside it")
        weights |= read_weights(folder / name)
    if missing := sorted(set(parts) - set(weights)):
        raise ValueError(f"{found} lists {missing[0]}, which is in none of the parts ({len(missing)} such names)")
    return config, weights


def is_folder(path: str | Path) -> bool:
    return (Path(path) / "config.json").is_file()


# -----------------------------------------------------------------------------
# the hub


def fetch(address: str, path: Path) -> bool:
    """Downloads one file; False if there is none at that address."""
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            if size > 1 << 24:
                print(f"downloading {address} ({size / 2**20:,.0f} MiB)", file=sys.stderr)

            def body(f):
                while block := answer.read(1 << 20):
                    f.write(block)
                if size and f.tell() != size:
                    raise OSError(f"{f.tell()} of {size} bytes came")

            disk.replace(path, body)
    except urllib.error.HTTPError as e:
        if e.code == 404:
            return False
        raise
    return True


def download(name: str) -> Path:
    """The folder of a model on the Hugging Face hub: a cached one, else downloaded; ValueError without network."""
    path = Path(name)
    if len(path.parts) > 2 and (maker := path.parent / "prepare.py").is_file():  # as beside data/qa_toy/gpt2
        raise ValueError(f"{name!r} does not exist: `python {maker}` makes what belongs there")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) or ".." in name:
        raise ValueError(f"{name!r} is no run, no checkpoint, no folder with a config.json and no name on the hub")
    try:
        home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    except RuntimeError:
        raise ValueError(f"{name!r} is no local folder; without HOME or HF_HOME nothing is downloaded") from None
    theirs = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    main = theirs / "refs" / "main"  # what transformers itself has downloaded
    found = theirs / "snapshots" / (main.read_text().strip() if main.is_file() else "none")
    if is_folder(found) and any((found / f).is_file() for f in FILES):
        return found
    folder = home / "plain" / name.replace("/", "--")
    if (folder / "complete").is_file():
        return folder
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/") + f"/{name}/resolve/main/"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        raise ValueError(f"{name!r} is no local folder, and HF_HUB_OFFLINE forbids to download it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 - one rank downloads, the others wait and find it done
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "complete").is_file():
            return folder
        if not fetch(base + "config.json", folder / "config.json"):
            raise ValueError(f"{name!r} is neither a local folder with a config.json nor a model on the hub")
        found = next((f for f in FILES if fetch(base + f, folder / f)), None)
        if found is None:
            raise ValueError(f"the hub's {name!r} holds no weights under {', '.join(FILES)}")
        if found.endswith(".index.json"):
            parts = read_json(folder / found).get("weight_map")
            if not isinstance(parts, dict):
                raise ValueError(f"the hub's {name!r} has no weight_map in {found}")
            for part in sorted({str(v) for v in parts.values()}):
                if Path(part).name != part or not fetch(base + part, folder / part):
                    raise ValueError(f"the hub's {name!r} lacks its part {part!r}")
        whole = fetch(base + "tokenizer.json", folder / "tokenizer.json")
        old = ("vocab.json", "merges.txt", "added_tokens.json", "vocab.txt")
        for other in ("tokenizer_config.json", *(() if whole else old)):
            fetch(base + other, folder / other)
    except OSError as e:  # refused, no such host, timed out, cut off
        if e.errno == errno.ENOSPC:
            raise
        why = getattr(e, "reason", e)
        there = "is a folder without a config.json" if Path(name).is_dir() else "does not exist here"
        raise ValueError(f"{name!r} {there}, and cannot be downloaded as a model of the hub: {why}"
                         f"{nearest(name, ('scratch', 'resume'))}") from None
    (folder / "complete").touch()
    return folder
