"""What a run's page says of privacy: the statement that covers everybody, and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from privacy.statement import shown, shown_delta

# How a run's settings were chosen, in words.
TUNING = {
    "unpaid": "unpaid: nobody says how these settings were chosen, and on private data each trial is one more release",
    "public": "chosen on public data, or on none",
    "paid": "chosen on private data, and the ledgers have paid for the trials",
}


def privacy_part(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What holds for the records of all clients, and what stands beside it; None where nothing was promised.

    Args:
        told: `privacy` of run.json.
    """
    if not told:
        return None
    most = told.get("max")
    if most is None:
        return {"sentence": "No client has answered.", "warning": "", "facts": [], "each": [], "on_the_side": ""}
    return {
        "sentence": most["statement"],
        "warning": "The noise came from the run's seed: whoever knows it computes the noise again. With "
        "privacy.os_entropy = true nobody can."
        if most["seeded"]
        else "",
        "facts": [
            ("Mechanism", f"{most['mechanism']}: {told['worth']}"),
            *[("Rests on", caveat) for caveat in most["caveats"]],
            ("Budget of a data set", f"epsilon {shown(most['budget'])} at delta {shown_delta(most['delta'])}"),
            ("Unit, neighbours", f"{most['unit']}, {most['adjacency'].replace('_', '-')}; their number is public"),
            ("Composition", f"{most['composition']}, {most['accountant']}"),
            ("Noise", most["noise"]),
            ("Tuning", TUNING[most["tuning"]]),
            ("Not covered", "; ".join(most["not_covered"])),
        ],
        "each": [f"{one['client']}: {one['statement']}" for one in told.get("each") or []],
        "on_the_side": told["on_the_side"],
    }
