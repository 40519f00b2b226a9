"""The arithmetic floor: the same steps in plain PyTorch, one process a core, no federation around them.

`python -m simulations.benchmarks.floor STUDY SITE...` reads one byte a round on standard input, does a round of the
named clients, and writes one byte when it is done. It imports nothing of ours but the layer sizes of cnn-small.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from safetensors.torch import load_file
from torch import nn

BATCH, LR, LOCAL_EPOCHS = 100, 0.1, 5


def cnn_small() -> nn.Module:
    """The reference model, written out."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def epochs(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, count: int) -> None:
    """Shuffled batches; `y` holds classes, or log-probabilities of a teacher."""
    for _ in range(count):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            logits = model(x[rows])
            if y.dtype == torch.int64:
                loss = F.cross_entropy(logits, y[rows])
            else:
                loss = F.kl_div(F.log_softmax(logits, 1), y[rows], reduction="batchmean", log_target=True)
            loss.backward()
            optimizer.step()


def distil(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, teacher: torch.Tensor) -> None:
    """One epoch of distillation on the proxy rows."""
    model.train()
    epochs(model, optimizer, x, teacher, 1)


def main() -> None:
    """Serve rounds until standard input ends."""
    torch.set_num_threads(1)
    study, sites = Path(sys.argv[1]), sys.argv[2:]
    proxy = load_file(study / "proxy" / "proxy.safetensors")["features"][:1000].float() / 255
    teacher = torch.log_softmax(torch.randn(1000, 10), 1)
    clients = []
    for site in sites:
        private = load_file(study / "sites" / site / "private.safetensors")
        model = cnn_small()
        clients.append((model, torch.optim.SGD(model.parameters(), lr=LR), private["features"], private["labels"]))
    while sys.stdin.buffer.read(1):
        for model, optimizer, features, labels in clients:
            distil(model, optimizer, proxy, teacher)
            epochs(model, optimizer, features.float() / 255, labels, LOCAL_EPOCHS)
            model.eval()
            with torch.inference_mode():
                torch.cat([torch.log_softmax(model(part), 1) for part in proxy.split(500)])
        sys.stdout.buffer.write(b".")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
