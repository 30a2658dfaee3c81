"""Tokenizers by description: a plain dict that travels in meta.json and in checkpoints.

    {"kind": "char", "chars": ["\\n", " ", "a", ...]}
    {"kind": "byte"}
    {"kind": "tiktoken", "name": "gpt2"}            and "merges", the text of vocab.bpe, where that came from a file
    {"kind": "tokenizers", "json": "{...}"}         a whole tokenizer.json

    vocab.load({"kind": "byte"}).encode("Hi") -> [72, 105]
"""

import functools
import hashlib
import itertools
import json
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data import bins

UNKNOWN = "\ufffd"  # what an id without a token reads as: models may have more rows than the vocabulary
EOT = "<|endoftext|>"
ENDS = (EOT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # how a tokenizer.json may call the end of a text
GPT2_MERGES = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # SHA-256 of vocab.bpe
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
PATIENCE = 30  # seconds for a download


class Char:
    """A character is a token: its place in the table."""

    eot = None

    def __init__(self, chars: list[str]):
        good = isinstance(chars, list) and all(isinstance(c, str) and len(c) == 1 for c in chars)
        if not good or not chars or len(set(chars)) < len(chars):
            raise ValueError("a char tokenizer needs a list of different single characters")
        self.chars, self.vocab_size = chars, len(chars)
        self.table = np.full(0x110000, -1, dtype=np.int32)
        self.table[[ord(c) for c in chars]] = np.arange(len(chars))

    def identity(self) -> dict:
        return {"kind": "char", "chars": self.chars}

    describe = identity

    def ids(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = self.table[codes]
        if ids.size and ids.min() < 0:
            at = int(ids.argmin())
            raise ValueError(f"character {text[at]!r} at place {at} is not among this tokenizer's {self.vocab_size}")
        return ids.astype(np.uint32)

    def encode(self, text: str) -> list[int]:
        return self.ids(text).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.chars[i] if 0 <= i < self.vocab_size else UNKNOWN for i in map(int, ids))


class Byte:
    """The bytes of UTF-8 are the tokens."""

    eot, vocab_size = None, 256

    def identity(self) -> dict:
        return {"kind": "byte"}

    describe = identity

    def ids(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.uint32)

    def encode(self, text: str) -> list[int]:
        return self.ids(text).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i if 0 <= i < 256 else 0xFF for i in map(int, ids)).decode("utf-8", "replace")


class Tiktoken:
    """Byte-level BPE by tiktoken: one of its own encodings, or GPT-2's kind of merges out of a file."""

    def __init__(self, name: str, merges: str | None = None):
        self.name, self.merges = name, merges
        if merges is None:
            self.encoding = download(name)
        else:
            if (name == "gpt2") != is_gpt2(merges):
                raise ValueError(f"these merges are not those of {name!r}")
            ranks = ranks_of(pairs_of(merges))
            self.encoding = encoding_of(name, ranks, {EOT: len(ranks)})
        self.vocab_size, self.eot = self.encoding.n_vocab, self.encoding.eot_token

    def identity(self) -> dict:
        """GPT-2's merges are the same from a file and from the network."""
        about = {"kind": "tiktoken", "name": self.name}
        return about if self.merges is None or self.name == "gpt2" else about | {"merges": self.merges}

    def describe(self) -> dict:
        return {"kind": "tiktoken", "name": self.name} | ({"merges": self.merges} if self.merges else {})

    def ids(self, text: str) -> np.ndarray:
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode(text, allowed_special="all")

    def decode(self, ids: Iterable[int]) -> str:
        runs: list[list[int] | str] = [[]]  # ids beyond the last token, and in the gaps of newer encodings
        for i in map(int, ids):
            try:
                self.encoding.decode_single_token_bytes(i)
                runs[-1].append(i)
            except (KeyError, OverflowError):
                runs += [UNKNOWN, []]
        return "".join(run if isinstance(run, str) else self.encoding.decode(run) for run in runs)


class Tokenizers:
    """Any tokenizer.json of Hugging Face's tokenizers; its truncation, padding and <s> ... </s> are left out."""

    def __init__(self, text: str):
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_str(text)
        except Exception as e:  # the library raises plain Exception
            raise ValueError(f"not a tokenizers JSON: {' '.join(str(e).split())}") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.text = text
        self.vocab_size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not self.vocab_size:
            raise ValueError("the tokenizers JSON has an empty vocabulary")
        found = [self.tokenizer.token_to_id(word) for word in ENDS]
        self.eot = next((i for i in found if i is not None), None)
        self.unknown = unknown_word(json.loads(text)["model"])

    @functools.cached_property
    def fast(self):
        return byte_level(json.loads(self.text))

    def identity(self) -> dict:
        about = json.loads(self.text)
        return {"kind": "tokenizers", "json": about | {"truncation": None, "padding": None}}

    def describe(self) -> dict:
        return {"kind": "tokenizers", "json": self.text}

    def ids(self, text: str) -> np.ndarray:
        if self.fast:
            encoding, numbers = self.fast
            return numbers[encoding.encode_to_numpy(text, disallowed_special=())]
        return np.array(self.read(text, True), dtype=np.uint32)  # "<mask>" in a text is text

    def encode(self, text: str) -> list[int]:
        return self.read(text, False)

    def read(self, text: str, plain: bool) -> list[int]:
        self.tokenizer.encode_special_tokens = plain
        try:
            (found,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        except Exception as e:  # plain Exception, of a tokenizer without <unk>
            raise ValueError(f"{text[:40]!r} holds what this tokenizer has no token for: {e}") from None
        return found.ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def unknown_word(model: dict) -> str | None:
    """What a tokenizer.json's model calls what it has no token for; a Unigram tells its number."""
    i = model.get("unk_id")
    return model.get("unk_token") if i is None else model["vocab"][i][0]


def drops(model: dict) -> bool:
    """Whether what a tokenizer.json's model has no token for goes without a trace."""
    if model["type"] != "BPE" or model.get("unk_token") or model.get("byte_fallback"):
        return False
    return not alphabet().keys() <= model["vocab"].keys()


KINDS = {
    "char": (Char, ("chars",)),
    "byte": (Byte, ()),
    "tiktoken": (Tiktoken, ("name", "merges")),
    "tokenizers": (Tokenizers, ("json",)),
}


def load(description: dict):
    """A tokenizer: .encode(str) -> list of ids (special tokens known), .ids(str) -> array (all of it is plain text),
    .decode(ids) -> str, .vocab_size, .eot (an id or None), .describe(), .hash."""
    kind = description.get("kind") if isinstance(description, dict) else description
    if str(kind) not in KINDS:
        raise ValueError(f"a tokenizer's kind must be one of {', '.join(KINDS)}, got {kind!r}")
    cls, keys = KINDS[kind]
    values = [description.get(key) for key in keys]
    if keys and not isinstance(values[0], list if kind == "char" else str):
        raise ValueError(f"a {kind} tokenizer needs {keys[0]!r}, got {str(values[0])[:40]!r}")
    tokenizer = cls(*values)
    canonical = json.dumps(tokenizer.identity(), sort_keys=True)
    tokenizer.hash = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return tokenizer


def alike(ours: dict, theirs: dict) -> bool:
    """Whether a tokenizer.json, which may be one for transformers of our characters or of GPT-2, gives our ids."""
    if theirs["kind"] != "tokenizers":
        return False
    if ours["kind"] == "tiktoken" and not ours.get("merges"):  # the table is on the network, which is not asked
        return ours["name"] != "gpt2" or load(theirs).encode("Hello world") == [15496, 995]
    a, b = load(ours), load(theirs)
    if ours["kind"] == "tokenizers":
        a, b = (json.loads(t.tokenizer.to_str()) for t in (a, b))
        return all(a[part] == b[part] for part in ("model", "normalizer", "pre_tokenizer"))
    text = "".join(ours.get("chars", ["It was 12:30, said the other one;\n\tna\u00efve \u4e2d\u6587 \U0001f600 end."]))
    try:
        return a.ids(text).tolist() == b.ids(text).tolist()
    except ValueError:  # a character that theirs lacks
        return False


def summary(description: dict | None) -> tuple[str, str]:
    """What --check says of a tokenizer, and whether it can be read here: "ok" or "note"."""
    if not description:
        return "note", "none is described: ids stay numbers"
    try:
        found = load(description)
    except ValueError as e:
        return "note", str(e)
    return "ok", f"{description['kind']}, {found.vocab_size:,} tokens, hash {found.hash}"


def readable(description: dict | None, ids: Iterable[int]) -> str:
    """Text for a log; nothing where no tokenizer can be had."""
    try:
        return load(description).decode(ids) if description else ""
    except ValueError:
        return ""


# -----------------------------------------------------------------------------
# GPT-2's merges


def pairs_of(merges: str) -> list[tuple[str, str]]:
    lines = [line for line in merges.splitlines() if line.strip() and not line.startswith("#version")]
    pairs = [tuple(line.split(" ")) for line in lines]
    if wrong := next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2), None):
        raise ValueError(f"a line of merges is two tokens and a space between them, got {wrong[:40]!r}")
    return pairs


def is_gpt2(merges: str) -> bool:
    """Whatever the line ends, as merges.txt or as vocab.bpe."""
    text = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in pairs_of(merges)), ""])
    return hashlib.sha256(text.encode()).hexdigest() == GPT2_MERGES


def alphabet() -> dict[str, int]:
    """The letters that GPT-2's files write for the 256 bytes, in the order of their ids: printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def ranks_of(pairs: list[tuple[str, str]]) -> dict[bytes, int]:
    """{token: id} of the bytes, then of the merges in their order."""
    letters = alphabet()
    ranks = {bytes([b]): i for i, b in enumerate(letters.values())}
    for a, b in pairs:
        token = bytes(letters.get(c, 0) for c in a + b)
        if token in ranks or not set(a + b) <= letters.keys():
            raise ValueError(f"the merge {a} {b} comes twice, or is not of GPT-2's letters for bytes")
        ranks[token] = len(ranks)
    return ranks


def encoding_of(name: str, ranks: dict[bytes, int], special: dict[str, int]):
    import tiktoken

    return tiktoken.Encoding(name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def byte_level(about: dict):
    """A tokenizer.json that does what GPT-2's does, as (tiktoken encoding, id by rank): the same ids, several times
    faster. None for all others."""
    model, split, letters = about["model"], about.get("pre_tokenizer") or {}, alphabet()
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if (
        (model.get("type"), split.get("type"), about.get("normalizer")) != ("BPE", "ByteLevel", None)
        or split.get("add_prefix_space")
        or not split.get("use_regex", True)
        or any(model.get(key) for key in odd)
        or not all(token["special"] for token in about.get("added_tokens", []))
        or not letters.keys() <= model["vocab"].keys()
    ):
        return None
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    try:
        ranks = ranks_of(pairs)
    except ValueError:
        return None
    order = {pair: r for r, pair in enumerate(pairs)}
    if not all(made_by(order, pair) for pair in pairs):
        return None
    numbers = np.array([model["vocab"][token] for token in [*letters, *(a + b for a, b in pairs)]], dtype=np.uint32)
    return encoding_of("byte-level", ranks, {}), numbers


def made_by(order: dict[tuple[str, str], int], pair: tuple[str, str]) -> bool:
    """Whether the merges before this one turn the token's letters into exactly its pair, as in any trained vocabulary.
    tiktoken merges any two parts that spell a token, tokenizers only that pair: if so, both give the same."""
    parts, limit = list("".join(pair)), order[pair]
    while len(parts) > 2:
        rank, at = min((order.get(both, limit), i) for i, both in enumerate(itertools.pairwise(parts)))
        if rank >= limit:
            return False
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return tuple(parts) == pair


def download(name: str):
    """tiktoken's own encodings come from the network once; requests would wait for ever, so a thread does."""
    import tiktoken

    found: dict = {}

    def get() -> None:
        try:
            found["encoding"] = tiktoken.get_encoding(name)
        except Exception as e:
            found["error"] = e

    if name not in tiktoken.list_encoding_names():
        raise ValueError(f"tiktoken knows {', '.join(tiktoken.list_encoding_names())}; got {name!r}")
    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if "encoding" not in found:
        why = type(found["error"]).__name__ if "error" in found else f"no answer in {PATIENCE} s"
        raise ValueError(
            f"the tokenizer {name!r} needs the network once ({why}): give GPT-2's vocab.bpe or a tokenizer.json instead"
            " (prepare.py --tokenizer FILE), or set TIKTOKEN_CACHE_DIR to a copy of tiktoken's cache"
        )
    return found["encoding"]


# -----------------------------------------------------------------------------
# what a user can name


def find(name: str) -> dict:
    """The description of `byte`, of one of tiktoken's encodings, or of a file: tokenizer.json, vocab.bpe, merges.txt
    (encoder.json or vocab.json beside it is checked), or a folder with one of these or with tokenizer_vocab*.json; of a
    data set's folder, what its ids were made with."""
    path = Path(name)
    if name == "byte":
        return {"kind": "byte"}
    if not path.exists() and "/" not in name and "." not in name:
        import tiktoken

        if name not in (known := tiktoken.list_encoding_names()):
            raise ValueError(f"--tokenizer must be char, byte, {', '.join(known)}, or a file or folder, as"
                             f" data/train_tokenizer.py writes it; got {name!r}")  # fmt: skip
        return {"kind": "tiktoken", "name": name}
    beside = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
    if path.is_dir():
        found = [path / f for f in ("tokenizer.json", "vocab.bpe", "merges.txt") if (path / f).is_file()]
        found = found or sorted(path.glob("tokenizer_vocab*.json"))  # by data/train_tokenizer.py
        if len(found) > 1 and found[0].name.startswith("tokenizer_vocab"):
            raise ValueError(f"tokenizer {path} holds several, name one: {', '.join(map(str, found))}")
        if not found and any((path / meta).is_file() for meta in ("meta.json", "meta.pkl")):
            if not (about := bins.Dataset(path).tokenizer):
                raise ValueError(f"tokenizer {path}: the data set there describes none")
            return about
        path = [*found, path][0]
    elif path.name in beside:
        path = path.with_name(beside[path.name])
    if not path.is_file():
        raise ValueError(f"tokenizer {path}: no such file, nor a folder with tokenizer.json, tokenizer_vocab*.json,"
                         " vocab.bpe, merges.txt or a data set's meta.json")  # fmt: skip
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"tokenizer {path} is not UTF-8 at byte {e.start}") from None
    if path.suffix == ".json":
        about = {"kind": "tokenizers", "json": text}
        try:
            load(about)
        except ValueError as e:
            raise ValueError(f"tokenizer {path}: {e}") from None
        return about
    for other in (path.with_name(key) for key, value in beside.items() if value == path.name):
        if other.is_file() and not agree(text, other):
            raise ValueError(f"{other} numbers its tokens otherwise than {path} does: give its tokenizer.json")
    return {"kind": "tiktoken", "name": "gpt2" if is_gpt2(text) else "merges", "merges": text}


def agree(merges: str, numbers: Path) -> bool:
    """Whether encoder.json gives the ids that the merges imply."""
    letters, ranks = alphabet(), ranks_of(pairs_of(merges))
    try:
        given = json.loads(numbers.read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise ValueError(f"{numbers} is not JSON: {e}") from None
    if not isinstance(given, dict) or given.pop(EOT, len(ranks)) != len(ranks):
        return False
    return ranks == {bytes(letters.get(c, 0) for c in word): i for word, i in given.items()}
