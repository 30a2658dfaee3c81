"""A vector for each text, by an encoder: the mean over its tokens, or its <s>.

    write("texts.csv", Path("vectors.npy"), "out_pretrain", device=device, dtype="auto")   # (number of texts, width)
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

from core import checkpoint, config, dist, exits, files
from core.progress import progress
from data import encoding, examples
from data.pretrained import check_fit, open_encoder
from model import RobertaConfig, RobertaMLM, starts


@torch.no_grad()
def write(texts: str, out: Path, source: str, *, device: torch.device, dtype: str, tokenizer: str = "",
          column: str = "", pooling: str = "mean", max_size: int | None = None) -> None:  # fmt: skip
    """A .npy file, float32, with a row for each row of a table, or each line that is not blank, in the file's order."""
    examples.in_columns(examples.files(texts), column)
    cfg, weights, about, _ = open_encoder(source, tokenizer)
    model = RobertaMLM(config.build(RobertaConfig, cfg, source))
    check_fit(model, weights, cfg, source, ["all"])
    checkpoint.put(model, {k: weights.get(k, v) for k, v in model.state_dict().items()}, source)  # the head is not used
    model.to(device).eval()
    autocast = dist.autocast(device, dist.precision(dtype, device)[0])
    coder = encoding.Encoder(about, min(max_size or sys.maxsize, model.config.block_size))
    n = sum(map(len, examples.read(texts, column, True)))
    cut = done = tokens = lost = pads = 0
    if not n:
        raise ValueError(f"--embed {texts} holds no text")
    if out.exists():
        with open(out, "rb") as f:
            if f.read(6) != np.lib.format.MAGIC_PREFIX:
                raise ValueError(f"--out {out} exists and is no .npy file: another name, so that nothing is lost")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = files.draft(out)  # two at once: one each, the last one stays
    try:
        with exits.writing(out):
            vectors = np.lib.format.open_memmap(draft, "w+", np.float32, (n, model.config.n_embd))
        if hasattr(os, "posix_fallocate"):  # a full disk found when a page of it is written kills the process
            with exits.writing(out), open(draft, "r+b") as f:
                os.posix_fallocate(f.fileno(), 0, draft.stat().st_size)
        for part in progress(examples.read(texts, column, True), "embedding"):
            for i in range(0, len(part), 64):
                coded = encoding.some_tokens(coder(part[i : i + 64]), texts, done)
                ids = torch.from_numpy(coded.ids.astype(np.int64)).to(device)
                with autocast:
                    if pooling == "cls":
                        x = model.encode(ids, coded.lengths, starts(coded.lengths)).float()
                    else:
                        x = model.encode(ids, coded.lengths).float().split(coded.lengths.tolist())
                        x = torch.stack([rows.mean(0) for rows in x])
                if not torch.isfinite(x).all():
                    raise exits.NotFinite(f"the vectors of {source} are not finite: it tells no text from another")
                vectors[done : done + len(x)] = x.cpu().numpy()
                done, cut, pads = done + len(x), cut + coded.cut, pads + coded.pads
                tokens, lost = tokens + len(coded.ids), lost + coder.lost(coded.ids)
        vectors.flush()
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)  # there is one only where something failed
    print(f"{out}: {n:,} vectors of {model.config.n_embd}, {cut:,} texts cut to {coder.max_size} tokens")
    encoding.note_lost(lost, tokens, pads)
