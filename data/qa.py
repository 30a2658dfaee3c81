"""Questions, answers and scores: reading, checking, the template, and batches of similar length.

    {"train": [{"Question": "2 + 2?", "Answer": "4", "Score": 5}, ...], "test": [...], "val": [...]}

The same as JSONL (a "split" in each line; a line without one belongs to train), or a folder with a file a split. Rows
with an Accepted_Answer beside the Answer are pairs. A JSONL is read line by line, and its tokens lie in a file: memory
stays bounded.
"""

import functools
import hashlib
import itertools
import json
import math
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core import exits, files, rng
from core.values import nearest
from data import encoding, examples
from data.split import fingerprints

SPLITS = ("train", "val", "test")
LINES = (".jsonl", ".ndjson")
PAIRS = 1 << 26  # of scored answers: their numbers alone, and what sorts them, take 4 GB
OTHERS = (*SPLITS, "validation", "valid", "dev", "eval")  # what a file of a folder is called elsewhere
FIELDS = "wanted are Question, Answer and Score, or, of pairs, Question, Accepted_Answer and Answer"

# -----------------------------------------------------------------------------
# reading


def parse_json(raw: bytes, where: str, at: int = 0):
    """One JSON value; an error names the byte or the line. `at` is where `raw` starts in its file."""
    try:
        text = raw.decode("utf-8-sig" if at == 0 else "utf-8")
    except UnicodeDecodeError as e:
        start = at + e.start + 3 * (at == 0 and raw.startswith(b"\xef\xbb\xbf"))
        raise ValueError(f"{where} is not UTF-8: byte {raw[e.start : e.start + 1].hex()} at offset {start}") from None
    return examples.parse_json(text, where)


def read_file(path: Path, split: str | None) -> Iterator[tuple[str | None, object]]:
    """(split, row) of one file; `split` holds for rows that do not say themselves."""
    if examples.ending(path) in LINES:
        at = 0
        with open(path, "rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    row = parse_json(line.rstrip(), f"{path} line {number}", at)
                    own = row.get("split") if isinstance(row, dict) else None  # a null says nothing, either
                    own = split if own is None else own
                    if own not in SPLITS:
                        raise ValueError(f"{path} line {number}: split must be one of {', '.join(SPLITS)}, got {own!r}")
                    yield own, row
                at += len(line)
        return
    if examples.ending(path) in (".csv", ".tsv"):
        raise ValueError(f"{path}: questions and answers are read from JSON or JSONL; docs/reward.md turns CSV into it")
    data = parse_json(path.read_bytes(), str(path))
    if isinstance(data, list):
        data = {split: data}
    if not isinstance(data, dict):
        raise ValueError(f'{path} must hold {{"train": [...], "test": [...]}}, got {type(data).__name__}')
    if wrong := [k for k, v in data.items() if k not in (*SPLITS, split) and isinstance(v, list)]:
        near = nearest(wrong[0], SPLITS)
        raise ValueError(f"{path}: unknown split {wrong[0]!r}{near} (the splits are {', '.join(SPLITS)})")
    for name in (split, *(s for s in SPLITS if s != split)):
        if not isinstance(data.get(name, []), list):
            raise ValueError(f"{path}: {name} must be a list of rows, got {type(data[name]).__name__}")
        for row in data.get(name, []):
            yield name, row


def records(path: Path) -> Iterator[tuple[str | None, object]]:
    """(split, row) of a file, or of a folder with train, val and test files."""
    path = Path(path)
    if path.is_dir():
        files = [(s, path / (s + end)) for s in SPLITS for end in (".json", *LINES) if (path / (s + end)).is_file()]
        other = {p for p in path.iterdir() if p.stem.lower() in OTHERS and examples.ending(p) in (".json", *LINES)}
        if other := sorted(other - {file for _, file in files}):
            raise ValueError(f"{other[0]} would not be read: the splits are called {', '.join(SPLITS)}, rename it")
        if not files:
            raise ValueError(f"{path} holds none of train.json, val.json, test.json (or .jsonl)")
        for a, b in itertools.pairwise(files):
            if a[0] == b[0]:
                raise ValueError(f"{path} holds both {a[1].name} and {b[1].name}: keep one")
        for split, file in files:
            yield from read_file(file, split)
    elif path.is_file():
        yield from read_file(path, "train" if examples.ending(path) in LINES else None)
    else:
        raise ValueError(f"{path} does not exist (data files: JSON, JSONL, or a folder with train and test files)")


# -----------------------------------------------------------------------------
# checking


def bad_number(value: object) -> str:
    """What is wrong with a score, or nothing."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return f" is {json.dumps(value)[:40]}, not a number"
    try:
        return "" if math.isfinite(value) else f" is {value}, not finite"
    except OverflowError:  # an integer of 400 digits
        return " is not finite"


def absent(name: str, row: dict) -> str:
    near = nearest(name, row).replace(", did you mean", ": rename").rstrip("?")
    return f".{name} is missing{near}"


def problems(row: object, pairs: bool, scored: bool) -> Iterator[str]:
    """What is wrong with a row, each beginning with the field."""
    if not isinstance(row, dict):
        yield f" is {json.dumps(row)[:40]}, not an object"
        return
    for name in ("Question", "Accepted_Answer", "Answer") if pairs else ("Question", "Answer"):
        text = row.get(name)
        if name not in row:
            yield absent(name, row)
        elif not isinstance(text, str):
            yield f".{name} is {json.dumps(text)[:40]}, not text"
    if not pairs and row.get("Accepted_Answer") is not None:
        yield ".Accepted_Answer makes a pair, and the first row is none: all rows are pairs, or none is"
    needed = scored and (not pairs or "Accepted_Score" in row)
    for name in ("Accepted_Score", "Score") if pairs else ("Score",):
        if name not in row and needed:
            yield absent(name, row)
        elif (needed or row.get(name) is not None) and (wrong := bad_number(row[name])):
            yield f".{name}{wrong}"


def check(path: Path, scored: bool = True, needed: tuple[str, ...] = ()) -> tuple[bool, Counter]:
    """Reads a whole file: (are its rows pairs, {split: rows}), or a ValueError that names the bad rows.

    scored: each row of a single answer needs its Score (to train on; not to be scored).
    needed: splits of which one must hold rows, each as "train" or "val|test".
    """
    pairs, counts, bad, shown, fields = None, Counter(), Counter(), [], ""
    for split, row in records(path):
        if pairs is None:
            pairs = isinstance(row, dict) and row.get("Accepted_Answer") is not None
        wrong = list(problems(row, pairs, scored))
        place = f"{split or 'row'}[{counts[split]}]"
        shown += [place + w for w in wrong][: 8 - len(shown)]
        if wrong and not fields and isinstance(row, dict) and not {"Question", "Answer"} & row.keys():
            hub = "; docs/reward.md makes them of chosen and rejected" * ("chosen" in row)
            fields = f" ({place} has {', '.join(map(repr, row)) or 'no field'}; {FIELDS}{hub})"
        bad[split] += bool(wrong)
        counts[split] += 1
    if total := sum(bad.values()):
        where = ", ".join(f"{n} in {split}" for split, n in bad.items() if n and split)
        more = "; ..." if total > len(shown) else ""
        raise ValueError(f"{path}: {total} of {sum(counts.values())} rows cannot be used"
                         f"{f' ({where})' if where else ''}: {'; '.join(shown)}{more}{fields}")  # fmt: skip
    for names in needed:
        if not any(counts[s] for s in (counts if names == "any" else names.split("|"))):
            found = ", ".join(f"{n} {s or 'without a split'}" for s, n in counts.items()) or "none"
            hint = '; write {"train": [...], "test": [...]}' if None in counts and names != "any" else ""
            kind = "" if names == "any" else f" {names.replace('|', ' or ')}"
            raise ValueError(f"{path} has no{kind} rows (rows: {found}){hint}")
    return bool(pairs), counts


# -----------------------------------------------------------------------------
# the template


@dataclass
class Template:
    """Question and answer as token ids, the same in training and scoring: `Question: Q\\nAnswer: A` and EOS.

    The parts are tokenized one by one, so a question's ids do not depend on its answer, and a cut never touches the
    template's own tokens. encode gives plain ids, without special tokens; start is [<s>] for encoders, else empty.
    """

    encode: Callable[[str], list[int]]
    start: list[int]
    end: list[int]
    max_length: int = 1024
    max_prompt_length: int = 512
    truncate_promt: bool = True
    unknown: int | None = None  # the id of <unk>
    cut: Counter = field(default_factory=Counter)  # what was cut, counted

    def __post_init__(self):
        self.head = [*self.start, *self.encode("Question:")]
        self.middle = self.encode("\nAnswer:")
        self.question = functools.lru_cache(256)(lambda text: tuple(self.encode(" " + text)))  # one, many answers
        self.fixed = len(self.head) + len(self.middle) + len(self.end)
        if self.max_length <= self.fixed:
            raise ValueError(f"data.max_length is {self.max_length}, but the template alone takes {self.fixed} tokens")

    def __call__(self, question: str, answer: str) -> tuple[list[int], int]:
        """(ids, how many of them are the same for each answer to this question)."""
        q, a = self.question(question), self.encode(" " + answer)
        self.cut["texts"] += 1
        self.cut["<unk>"] += 0 if self.unknown is None else q.count(self.unknown) + a.count(self.unknown)
        if not self.truncate_promt:
            ids = [*self.head, *q, *self.middle, *a, *self.end]
            self.cut["sequences cut"] += len(ids) > self.max_length
            return ids[: self.max_length], min(len(ids) - len(a) - len(self.end), self.max_length - 1)
        room = min(self.max_prompt_length, max(0, self.max_length - self.fixed - len(a)))
        self.cut["questions cut"] += len(q) > room
        q = q[:room]
        if len(a) > self.max_length - self.fixed:
            self.cut["answers cut"] += 1
            a = a[: self.max_length - self.fixed]
        ids = [*self.head, *q, *self.middle, *a, *self.end]
        return ids, len(ids) - len(a) - len(self.end)

    def report(self) -> str:
        names = ("questions cut", "answers cut") if self.truncate_promt else ("sequences cut",)
        names += ("<unk>",) if self.cut["<unk>"] else ()  # the tokenizer has no token for what stood there
        return f"{self.cut['texts']:,} texts, " + ", ".join(f"{self.cut[n]:,} {n}" for n in names)


def prepare_train(rows: list[dict], template: Template) -> dict[str, list]:
    """Rows as columns of token ids, unpadded: labels with input_ids and attention_mask, or, for pairs, both with
    _j (the accepted answer) and with _k (the other one); labels are then the two scores, where the rows have both."""
    out: dict[str, list] = {"labels": []}
    pairs = bool(rows) and rows[0].get("Accepted_Answer") is not None
    for row in rows:
        for end, name in (("_j", "Accepted_Answer"), ("_k", "Answer")) if pairs else (("", "Answer"),):
            ids, _ = template(row["Question"], row[name])
            out.setdefault("input_ids" + end, []).append(ids)
            out.setdefault("attention_mask" + end, []).append([1] * len(ids))
        if pairs:
            scores = [row.get(n) for n in ("Accepted_Score", "Score")]
            out["labels"].append([math.nan] * 2 if None in scores else [float(s) for s in scores])
        else:
            out["labels"].append(math.nan if row.get("Score") is None else float(row["Score"]))
    return out


def tokenizer(folder: Path) -> dict:
    """The description of the tokenizer in a Hugging Face folder, for data/vocab.py."""
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return encoding.describe(folder / "tokenizer.json")
    if missing := [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]:
        raise ValueError(f"{folder} holds no tokenizer: tokenizer.json, or {' and '.join(missing)}, is missing")
    from tokenizers import AddedToken, ByteLevelBPETokenizer, processors

    try:
        bpe = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as e:  # the library raises plain Exception
        raise ValueError(f"{folder / 'vocab.json'} and merges.txt are no tokenizer: {e}") from None
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>")
    special = [name for name in names if bpe.token_to_id(name) is not None]
    bpe.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in special])
    more = folder / "added_tokens.json"  # what a fine-tuned model's own words are
    added = files.read_json(more) if more.is_file() else {}
    words = sorted(added, key=lambda word: str(added[word]).zfill(20))
    bpe.add_tokens([AddedToken(word, normalized=False) for word in words if word not in special])
    if wrong := next((word for word in words if bpe.token_to_id(word) != added[word]), None):
        raise ValueError(f"{more} gives {wrong!r} the id {added[wrong]!r}, which follows on none of vocab.json")
    if {"<s>", "</s>"} <= {*special}:  # RoBERTa's two files do not say that its texts lie between these
        ends = [(w, bpe.token_to_id(w)) for w in ("</s>", "<s>")]
        bpe.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    return {"kind": "tokenizers", "json": bpe.to_str()}


# -----------------------------------------------------------------------------
# a split, ready to train on


@dataclass
class QA:
    """Texts as one array of tokens; a sample is a text with its label, or a pair of texts, the better one first."""

    tokens: np.ndarray  # int32, all texts one after the other, in a file
    offsets: np.ndarray  # (texts + 1)
    labels: np.ndarray  # (texts), NaN where there is none
    samples: np.ndarray  # (n, 1) or (n, 2) text numbers

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def pairs(self) -> bool:
        return self.samples.shape[1] == 2

    def order(self, which=slice(None)) -> np.ndarray:
        """The texts of samples: all better ones, then all others; or, without pairs, simply all."""
        return self.samples[which].T.ravel()

    def sizes(self, which=slice(None)) -> np.ndarray:
        """Tokens of each text of the samples, (n, 1) or (n, 2)."""
        texts = self.samples[which]
        return self.offsets[texts + 1] - self.offsets[texts]

    def lengths(self) -> np.ndarray:
        """Tokens of each sample's longest text."""
        return self.sizes().max(1)

    def alike(self) -> int:
        """Pairs of texts that have the same tokens, by themselves or once they were cut."""
        if not self.pairs:
            return 0
        prints = fingerprints(self.tokens, np.diff(self.offsets))[self.samples]
        return int((prints[:, 0] == prints[:, 1]).sum())

    def check_ids(self, vocab_size: int, file: Path) -> None:
        if len(self.tokens) and (high := int(self.tokens.max())) >= vocab_size:
            text = int(np.searchsorted(self.offsets, int(self.tokens.argmax()), "right")) - 1
            raise ValueError(f"{file}: text {text} holds the id {high}, the model's last one is {vocab_size - 1}")

    def counts(self) -> list[int]:
        """What tells these data from others: how many, a checksum of the scores and one of 512 of the samples."""
        some = self.texts(self.order(np.linspace(0, len(self) - 1, 512).astype(np.int64)))
        return [len(self), zlib.crc32(self.labels.tobytes()), zlib.crc32(np.concatenate(some).tobytes())]

    def texts(self, which: Iterable[int]) -> list[np.ndarray]:
        return [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in which]


def head(data: QA, n: int) -> QA:
    """The first n samples."""
    return QA(data.tokens, data.offsets, data.labels, data.samples[:n])


def load(rows: Iterable[tuple[str, dict]], template: Template, pairwise: bool) -> dict[str, QA]:
    """{split: QA} of the records of a checked file. pairwise makes pairs of scored answers to the same question.

    The tokens' files lie in the system's temporary folder (TMPDIR); they have no name, so nothing stays behind.
    """
    parts: dict[str, dict] = {}
    waiting: dict[str, list] = {}
    temporary = Path(tempfile.gettempdir())

    def flush(split: str) -> None:
        part = parts[split]
        columns = prepare_train(waiting[split], template)
        ends = ("_j", "_k") if "input_ids_j" in columns else ("",)
        for row, label in enumerate(columns["labels"]):
            part["labels"] += label if isinstance(label, list) else [label]
            for end in ends:
                ids = columns["input_ids" + end][row]
                with exits.writing(temporary):
                    part["file"].write(np.asarray(ids, dtype=np.int32).tobytes())
                part["lengths"].append(len(ids))
        part["width"] = len(ends)
        waiting[split] = []

    for split, row in rows:
        if split not in parts:
            parts[split] = {"file": tempfile.TemporaryFile(), "lengths": [], "labels": [], "questions": []}  # noqa: SIM115
            waiting[split] = []
        waiting[split].append(row)
        if pairwise:
            digest = hashlib.blake2b(row["Question"].encode(), digest_size=8).digest()
            parts[split]["questions"].append(int.from_bytes(digest, "little", signed=True))
        if len(waiting[split]) == 256:
            flush(split)
    out = {}
    for split, part in parts.items():
        flush(split)
        with exits.writing(temporary):
            part["file"].flush()
        lengths, labels = np.asarray(part["lengths"], np.int64), np.asarray(part["labels"], np.float64)
        samples = np.arange(len(lengths)).reshape(-1, part["width"])
        if pairwise and part["width"] == 1:
            samples = ranked_pairs(np.asarray(part["questions"], np.int64), labels)
        tokens = np.memmap(part["file"], dtype=np.int32, mode="r")
        part["file"].close()  # the mapping holds it
        out[split] = QA(tokens, np.concatenate([[0], lengths.cumsum()]), labels, samples)
    return out


def ranked_pairs(questions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, 2): each two answers to one question that differ in score, the better one first."""
    counts = np.unique(questions, return_counts=True)[1]
    if (many := int((counts * (counts - 1) // 2).sum())) > PAIRS:
        raise ValueError(f"model_params.loss pairwise: the answers to each question, {counts.max():,} to one, make"
                         f" {many:,} pairs, and {PAIRS:,} is the most: loss mse takes each answer by itself, or write"
                         " the pairs that count, with Accepted_Answer and Answer")  # fmt: skip
    order = np.argsort(questions, kind="stable")
    starts = np.flatnonzero(np.diff(questions[order], prepend=questions[order[0]] - 1)) if len(order) else []
    pairs = [np.empty((0, 2), np.int64)]
    for group in np.split(order, starts[1:]):
        i, j = np.triu_indices(len(group), 1)
        i, j = group[i], group[j]
        better = np.where(labels[i] >= labels[j], i, j)
        pairs.append(np.stack([better, i + j - better], 1)[labels[i] != labels[j]])
    return np.concatenate(pairs)


# -----------------------------------------------------------------------------
# batches


def epoch(lengths: np.ndarray, batch: int, *coords: int | str, window: int = 50) -> list[np.ndarray]:
    """One epoch as batches of similar length: a permutation, sorted within windows of some batches, in random order.

    A pure function of its arguments: rank and micro-step take slices of what the whole batch holds.
    """
    g = rng.generator(*coords)
    order = g.permutation(len(lengths))
    batches = []
    for at in range(0, len(order), window * batch):
        part = order[at : at + window * batch]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch] for i in range(0, len(part), batch)]
    return [batches[i] for i in g.permutation(len(batches))]
