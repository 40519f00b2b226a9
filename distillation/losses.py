"""Losses against soft labels and hard labels: pure functions, one value per row averaged once over rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

# A teacher's log-probability under this says "never"; minus infinity would make the loss NaN.
_TARGET_FLOOR = -30.0

DistilLoss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def kl_loss(logits: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(teacher_T || student_T), mean over rows (Hinton et al. 2015).

    Args:
        logits: [n, classes] of the student.
        teacher: [n, classes] log-probabilities at temperature 1.
        temperature: T > 0, applied to both sides; T^2 keeps the gradient's size.

    Returns:
        Scalar, nats. The gradient by the logits is T (q_T - p_T) / n.
    """
    log_q = F.log_softmax(logits.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.clamp_min(_TARGET_FLOOR) / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1).mean() * temperature**2


def mae_loss(logits: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Mean absolute difference of logits, each row centred on its mean (FedMD, Li and Wang 2019).

    Log-probabilities lose a constant per row against raw logits; centring both sides makes the loss
    independent of it. `temperature` divides both sides.
    """
    centred = logits.float() - logits.float().mean(1, keepdim=True)
    target = teacher.clamp_min(_TARGET_FLOOR)
    target = target - target.mean(1, keepdim=True)
    return (centred - target).abs().mean() / temperature


DISTIL_LOSSES: dict[str, DistilLoss] = {"kl": kl_loss, "mae": mae_loss}
