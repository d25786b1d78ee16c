"""The model and its training step in plain PyTorch, against which `training.py` is timed.

    python training_reference.py FOLDER

Runs under a Python with torch. FOLDER contains run.json, params.npz, batch.npz and draws.npz from `training_pair.py`;
noise and dropout are drawn there, so that both sides compute the same. Reads one JSON request per line and writes one
JSON answer per line: {"do": "check"} returns the losses and writes gradients.npz; {"do": "learn", "steps": n} trains n
steps and returns the loss of each; {"do": "time", "steps": n, "autocast": b} returns the seconds of n steps.

Written from docs/design/training.md and the published layer definitions, in eager mode with torch's own attention,
embedding bags, fused AdamW and autocast.

Legend: B sequences, T positions, M masked positions, D width, C concepts, S chunks per sequence, K labels per chunk.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.groups, self.clip = c["n_kv_heads"], c["clip_qkv"]
        D, self.size = c["n_embd"], c["n_embd"] // c["n_head"]
        self.c_attn = nn.Linear(D, D + 2 * self.groups * self.size, bias=False)
        self.c_proj = nn.Linear(D, D, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(self.size, eps=c["norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        B, T, D = x.shape
        sizes = [D, self.groups * self.size, self.groups * self.size]
        q, k, v = self.c_attn(x).clamp(-self.clip, self.clip).split(sizes, dim=-1)
        q, k, v = (part.view(B, T, -1, self.size).transpose(1, 2) for part in (q, k, v))
        q, k = rotate(self.q_norm(q), rope).to(v.dtype), rotate(self.k_norm(k), rope).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, D))


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return x * rope[0] + torch.cat([-second, first], dim=-1) * rope[1]


class MLP(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.c_fc = nn.Linear(c["n_embd"], 2 * c["intermediate_size"], bias=False)
        self.c_proj = nn.Linear(c["intermediate_size"], c["n_embd"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.c_fc(x).chunk(2, dim=-1)
        return self.c_proj(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.attn, self.mlp = Attention(c), MLP(c)
        self.ln_1, self.ln_2 = (nn.RMSNorm(c["n_embd"], eps=c["norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.ln_1(self.attn(x, rope, mask))
        return x + self.ln_2(self.mlp(x))


class KnownHead(nn.Module):
    def __init__(self, c: dict, rows: int):
        super().__init__()
        self.count, self.topk = c["n_concepts"], c["topk_known_features"]
        self.concept_embedding = nn.EmbeddingBag(rows, c["concept_dim"], mode="sum")
        self.concept_predictor = nn.Linear(c["concept_dim"], rows, bias=False)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.concept_predictor.weight[: self.count]).clamp(-15, 15)

    def forward(self, hidden: Tensor) -> Tensor:
        best, index = self.logits(hidden).topk(self.topk, dim=-1)
        return self.concept_embedding(index, per_sample_weights=best.float().sigmoid())


class DiscoveredHead(nn.Module):
    def __init__(self, c: dict, rows: int):
        super().__init__()
        self.count, self.topk = c["n_unknown_concepts"], c["unknown_topk"]
        D, R = c["concept_dim"], c["factorize_rank"]
        self.embedding_coef = nn.EmbeddingBag(rows, R, mode="sum")
        self.embedding_basis = nn.Linear(R, D, bias=False)
        self.predictor_down = nn.Linear(D, R, bias=False)
        self.predictor_up = nn.Linear(R, rows, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        logits = F.linear(self.predictor_down(hidden), self.predictor_up.weight[: self.count]).clamp(-15, 15)
        best, index = logits.topk(self.topk, dim=-1)
        return self.embedding_basis(self.embedding_coef(index, per_sample_weights=best.float().sigmoid()))


class Model(nn.Module):
    def __init__(self, run: dict, length: int):
        super().__init__()
        c = run["model"]
        concept, self.objective, self.block = c["concept"], run["objective"], c["diff_block_size"]
        self.tok_emb = nn.Embedding(c["vocab_size"], c["n_embd"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["n_layers"]))
        self.ln_f = nn.RMSNorm(c["n_embd"], eps=c["norm_eps"])

        def padded(count: int) -> int:
            return -(-count // concept["pad_multiple"]) * concept["pad_multiple"]

        self.known_head = KnownHead(concept, padded(concept["n_concepts"]))
        self.unknown_head = DiscoveredHead(concept, padded(concept["n_unknown_concepts"]))
        size = c["n_embd"] // c["n_head"]
        frequency = c["rope_base"] ** (-torch.arange(0, size, 2) / size)
        angle = (torch.arange(length)[:, None] * frequency).repeat(2, 2)  # both copies, both halves
        self.rope = angle.cos(), angle.sin()
        number = torch.arange(length) // self.block
        visible, before, own = (compare(number[:, None], number) for compare in (torch.ge, torch.gt, torch.eq))
        self.mask = torch.cat([torch.cat([visible, torch.zeros_like(visible)], 1), torch.cat([before, own], 1)])

    def forward(self, batch: dict[str, Tensor], draw: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss and its terms.

        batch: tokens and chunk_index (B, T), chunk_labels (B, S, K). draw: noise levels (B, blocks); noisy tokens, the
        mask, and where epsilon, known or discovered features are dropped, each (B, T); whether labels' features and the
        true residual are forced, (); the run's progress, ().
        """
        tokens, T = batch["tokens"], batch["tokens"].shape[1]
        x = self.tok_emb(torch.cat([tokens, draw["noisy"]], dim=1))
        for block in self.blocks:
            x = block(x, self.rope, self.mask)
        masked = draw["masked"].flatten().nonzero()[:, 0]
        hidden = self.ln_f(x[:, T:]).flatten(0, 1)[masked]
        chunk = (batch["chunk_index"] + batch["chunk_labels"].shape[1] * torch.arange(len(tokens))[:, None]).flatten()
        chunk = torch.where(batch["chunk_index"].flatten() >= 0, chunk, -1)[masked]
        labels = batch["chunk_labels"].flatten(0, 1)
        used = (labels >= 0).float()
        of_chunk = self.known_head.concept_embedding(labels.clamp(min=0), per_sample_weights=used)
        labelled = torch.where((chunk >= 0)[:, None], of_chunk[chunk.clamp(min=0)], 0.0)
        known, discovered = self.known_head(hidden), self.unknown_head(hidden.detach())
        dropped = {part: draw[f"drop_{part}"].flatten()[masked, None] for part in ("epsilon", "known", "discovered")}
        k = torch.where((chunk >= 0)[:, None], labelled, known) if draw["use_labels"] else known
        u = hidden - labelled if draw["use_residual"] else discovered
        parts = torch.where(dropped["known"], 0.0, k) + torch.where(dropped["discovered"], 0.0, u)
        composed = torch.where(dropped["epsilon"], parts, hidden)
        level = draw["levels"].repeat_interleave(self.block, dim=1)[:, :T].flatten()[masked]
        nats = F.cross_entropy(
            F.linear(composed, self.tok_emb.weight).float(), tokens.flatten()[masked], reduction="none"
        )
        terms = {"diffusion": nats.mean(), "bound": (nats / level).sum() / (1 / level).sum()}
        terms["presence"] = self.presence(hidden, chunk, labels, draw["progress"])
        terms["residual"] = (discovered.float() - (hidden.float() - labelled).detach()).square().mean()
        terms["independence"] = independence(known.detach().float(), discovered.float())
        o = self.objective
        terms["loss"] = (
            terms["diffusion" if o["token_weight"] == "one" else "bound"]
            + o["concept_weight"] * terms["presence"]
            + o["residual_weight"] * terms["residual"]
            + o["independence_weight"] * terms["independence"]
        )
        return terms

    def presence(self, hidden: Tensor, chunk: Tensor, labels: Tensor, progress: Tensor) -> Tensor:
        """The presence loss: nats per chunk of the labels, given evidence summed over the chunk's masked positions."""
        hold = (progress / self.objective["concept_warmup"]).clamp(max=1.0)
        logits = self.known_head.logits(hold * hidden + ((1 - hold) * hidden).detach()).float()
        in_chunk = chunk >= 0
        evidence = logits.new_zeros(len(labels), logits.shape[1])
        evidence = evidence.index_add(0, chunk[in_chunk], F.softplus(logits[in_chunk]))
        positive = torch.zeros(len(labels), logits.shape[1] + 1, dtype=torch.bool)
        positive = positive.scatter(1, torch.where(labels >= 0, labels, logits.shape[1]), True)[:, :-1]
        present = torch.bincount(chunk[in_chunk], minlength=len(labels)) > 0
        nats = torch.where(positive, -log_presence(evidence), evidence)[present]
        return nats.sum() / len(nats)


def log_presence(evidence: Tensor) -> Tensor:
    """log(1 − exp(−evidence)) with finite gradients for small and large evidence."""
    e = evidence.clamp(min=1e-7)
    near = e < np.log(2)
    close = torch.log(-torch.expm1(-torch.where(near, e, 0.1)))
    return torch.where(near, close, torch.log1p(-torch.exp(-torch.where(near, 1.0, e))))


def independence(known: Tensor, discovered: Tensor) -> Tensor:
    """The independence loss of features (M, D): the squared cross-covariance of known and discovered ones."""
    M, D = known.shape
    phi, psi = known - known.mean(dim=0), discovered - discovered.mean(dim=0)
    product = (psi.T @ phi).square().sum() if D <= M else ((psi @ psi.T) * (phi @ phi.T)).sum()
    return product / (D**2 * (M - 1))


class Trainer:
    """The model with its initial weights, and the optimizer."""

    def __init__(self, folder: Path):
        self.run = json.loads((folder / "run.json").read_text())
        arrays = {name: dict(np.load(folder / f"{name}.npz")) for name in ("params", "batch", "draws")}
        self.batch = {name: torch.from_numpy(a).long() for name, a in arrays["batch"].items()}
        self.draws = [
            {name: torch.from_numpy(np.array(a[i])) for name, a in arrays["draws"].items()}
            for i in range(len(arrays["draws"]["noisy"]))
        ]
        for draw in self.draws:
            draw["noisy"] = draw["noisy"].long()
        self.model = Model(self.run, self.batch["tokens"].shape[1])
        for name, parameter in self.model.named_parameters():
            parameter.data = torch.from_numpy(arrays["params"][name]).clone()
        self.step, o = 0, self.run["optimizer"]
        decays = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            decays[name in self.run["decayed"]].append(parameter)
        groups = [{"params": p, "weight_decay": o["weight_decay"] * d} for d, p in decays.items()]
        self.adam = torch.optim.AdamW(groups, betas=(o["b1"], o["b2"]), eps=o["eps"], fused=True)

    def gradients(self, autocast: bool) -> dict[str, Tensor]:
        self.adam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            terms = self.model(self.batch, self.draws[self.step % len(self.draws)])
        terms["loss"].backward()
        return terms

    def update(self, autocast: bool = False) -> float:
        terms = self.gradients(autocast)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run["optimizer"]["clip_norm"])
        for group in self.adam.param_groups:
            group["lr"] = self.run["rates"][min(self.step, len(self.run["rates"]) - 1)]
        self.adam.step()
        self.step += 1
        return terms["loss"].item()


def answer(request: dict, trainer: Trainer, folder: Path) -> dict:
    """The answer to one request."""
    match request["do"]:
        case "check":
            terms = trainer.gradients(autocast=False)
            grads = {name: p.grad.numpy() for name, p in trainer.model.named_parameters() if p.grad is not None}
            np.savez(folder / "gradients.npz", **grads)
            return {name: value.item() for name, value in terms.items()}
        case "learn":
            return {"losses": [trainer.update() for _ in range(request["steps"])]}
        case _:
            begin = time.perf_counter()
            for _ in range(request["steps"]):
                trainer.update(request["autocast"])
            return {"seconds": time.perf_counter() - begin}


def main() -> None:
    folder = Path(sys.argv[1])
    trainer = Trainer(folder)
    print(json.dumps({"threads": torch.get_num_threads(), "version": torch.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), trainer, folder)), flush=True)


if __name__ == "__main__":
    main()
