"""What a configuration says about importance: its form and how it is measured, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from retain.fisher.estimate import Importance, form_options, measure
from retain.fisher.forms import FORMS, Form
from retain.fisher.sweep import PASS, check_pass
from retain.mistakes import Within, check_names, check_types
from retain.nearest import did_you_mean
from retain.task import Task


@dataclass(frozen=True)
class Choice:
    """The keyword ``fisher`` of a method, complete.

    Attributes:
        form: what importance is kept as.
        options: the form's own keywords.
        sweep: those of the pass over the rows: how many, which labels, how exactly.
        own: those of the method itself.
    """

    form: type[Form]
    options: dict[str, Any]
    sweep: dict[str, Any]
    own: dict[str, Any]

    @property
    def name(self) -> str:
        """The form's name in ``FORMS``."""
        return next(name for name, form in FORMS.items() if form is self.form)

    def measure(self, model: nn.Module, modules: Mapping[str, nn.Module], task: Task, **more: Any) -> Importance:
        """``retain.fisher.measure`` with these keywords; ``more`` are further ones of it."""
        return measure(model, modules, task, form=self.form, **self.options, **self.sweep, **more)

    def empty(self, like: Tensor, out: int, in_: int) -> Form:
        """No importance for a weight (out, in), on the device and in the precision of ``like``, float32 at least."""
        kind = torch.promote_types(like.dtype, torch.float32)
        return self.form.collector(out, in_, like.device, kind, **self.options).done(1.0)

    def restored(self, state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Form]:
        """The forms whose states ``state`` holds, by the name of the weight.

        Raises:
            ValueError: by its name, one of another form, or of other options.
        """
        forms = {}
        for name, tensors in state.items():
            try:
                forms[name] = self.form.from_state_dict(tensors, **self.options)
            except ValueError as error:
                raise ValueError(
                    f"the importance of {name} was kept with other keywords of `fisher`: {error}"
                ) from None
        return forms


def choose(
    given: Mapping[str, Any] | None, defaults: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> Choice:
    """``given`` on top of ``defaults``: a form by its name, the keywords of that form, and those of a ``Sweep``.

    Args:
        given: as a user wrote it.
        defaults: a method's; "form" is among them.
        own: keywords of the method itself, with the types of their values.

    Raises:
        ValueError: a name, a type or a value that is not allowed, in one line, as of the section "fisher".
    """
    if not isinstance(given, Mapping | None):
        raise ValueError(f"fisher: {given!r} is not allowed; expected a section of keys")
    try:
        return _chosen({**defaults, **(given or {})}, own or {})
    except ValueError as error:
        raise Within("fisher", error) from None


def _chosen(keywords: dict[str, Any], own: Mapping[str, Any]) -> Choice:
    name = keywords["form"]
    if not isinstance(name, str) or name not in FORMS:
        raise Within("form", f"unknown form {name!r}; known: {', '.join(FORMS)}{did_you_mean(name, FORMS)}")
    of_form = _of_form(name)
    known = {"form": str, **of_form, **PASS, **own}
    for key in (key for key in keywords if key not in known):
        if others := [form for form in FORMS if key in _of_form(form)]:
            whose = f"is a keyword of the form {' or '.join(map(repr, others))}, and the form here is {name!r}"
            raise ValueError(f"{key!r} (value {keywords[key]!r}) {whose}")
    check_names(keywords, known, "the keyword fisher")
    check_types(keywords, known)
    parts = [{k: v for k, v in keywords.items() if k in part} for part in (of_form, PASS, own)]
    choice = Choice(FORMS[name], *parts)
    check_pass(**choice.sweep)
    FORMS[name].collector(1, 1, torch.device("cpu"), torch.float32, **choice.options)  # it looks at them itself
    return choice


def _of_form(name: str) -> dict[str, Any]:
    """The keywords of a form, with the types of their values."""
    kinds = get_type_hints(FORMS[name].collector)
    return {key: kinds[key] for key in form_options(FORMS[name])}
