"""Every form of importance under the name that a configuration gives it."""

from retain.fisher.forms.diagonal import Diagonal
from retain.fisher.forms.factored import Factored
from retain.fisher.forms.form import Collector, Form
from retain.fisher.forms.kronecker import Kronecker

FORMS: dict[str, type[Form]] = {
    "diagonal": Diagonal,
    "factored": Factored,
    "kronecker": Kronecker,
}

__all__ = ["FORMS", "Collector", "Diagonal", "Factored", "Form", "Kronecker"]
