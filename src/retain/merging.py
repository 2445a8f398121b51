"""The states of two sites as one: what each has measured on its own rows, around the same weights, adds up.

w1 <D, F1 D> / 2 + w2 <D, F2 D> / 2 = <D, (w1 F1 + w2 F2) D> / 2 as long as D starts at the same weights in both. A
Fisher information is a mean over rows, so that with w the sites' shares of the rows it is that of all rows together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from retain.files import StoreError
from retain.fisher.choice import Choice
from retain.fisher.forms import Diagonal, Form, Kronecker

State = Mapping[str, Tensor]

SUMS = ("fisher", "constant", "level", "sketches")
NOTES = ("calibration", "reached")  # what boundaries of a run have found: of both, what they agree on


def merged(
    states: Sequence[State], weights: Sequence[float], choice: Choice
) -> tuple[dict[str, Tensor], bool, list[str]]:
    """The ``Method.state_dict`` of all sites together, whether it is exact, and the notes that were left out.

    Args:
        states: of each site.
        weights: of each site's importance.
        choice: the form of it.

    Raises:
        StoreError: what is not the same at all sites and is no sum, by its name.
    """
    names = sorted(set().union(*states))
    result, left, exact, forms = dict[str, Tensor](), list[str](), True, dict[str, list[dict[str, Tensor]]]()
    for name in names:
        kind, found = name.split("/")[0], [state[name] for state in states if name in state]
        whole = len(found) == len(states) and all(t.shape == found[0].shape for t in found)
        if whole and all(torch.equal(t, found[0]) for t in found) and kind not in SUMS:
            result[name] = found[0]
        elif kind in NOTES:
            left.append(name)
        elif not whole:
            raise StoreError(f"{name!r} is not the same thing at all sites: it cannot be merged")
        elif kind == "moved" and all(torch.equal(t[0], found[0][0]) for t in found):
            result[name] = torch.stack([found[0][0], torch.stack(found)[:, 1].sum()])
        elif (kind in SUMS and name.count("/") == 1) or (kind == "springs" and name.endswith("/fisher")):
            result[name] = _sum(found, weights)
        elif kind in SUMS:
            for i, tensor in enumerate(found):
                site, part = name.rsplit("/", 1)
                forms.setdefault(site, [{} for _ in states])[i][part] = tensor
        else:
            raise StoreError(f"{name!r} differs between the sites: importance adds up around the same weights only")
    for site, parts in forms.items():
        form, whole = _joined([_restored(choice, site, part) for part in parts], weights)
        result |= {f"{site}/{part}": tensor for part, tensor in form.state_dict().items()}
        exact = exact and whole
    return result, exact, left


def _sum(found: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([w * t for w, t in zip(weights, found, strict=True)]).sum(0)


def _restored(choice: Choice, site: str, part: Mapping[str, Tensor]) -> Form:
    """The form that ``part`` is the state of; sketches are Kronecker forms of a rank of their own."""
    try:
        if site.startswith("sketches/"):
            rank = choice.own["sketches"]
            return Kronecker.from_state_dict(part, rank=rank) if "left" in part else Diagonal.from_state_dict(part)
        return choice.restored({site: part})[site]
    except ValueError as error:
        raise StoreError(str(error)) from error


def _joined(forms: Sequence[Form], weights: Sequence[float]) -> tuple[Form, bool]:
    """The weighted sum, and whether nothing was cut off or rounded for it."""
    for form, weight in zip(forms, weights, strict=True):
        form.rescale(weight)
    total = forms[0]
    for form in forms[1:]:
        total.accumulate(form)
    return total, _adds_up(total)


def _adds_up(form: Any) -> bool:
    if isinstance(form, Kronecker):
        return form.left.rest is None and form.right.rest is None
    return isinstance(form, Diagonal) and form.values.dtype in (torch.float32, torch.float64)
