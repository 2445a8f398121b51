"""Values of a knob that optuna proposes: a multi-objective search for more learned and less forgotten.

The study lies in the sweep's folder as a journal, which several processes, also on several machines, may share.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from retain.commands.sweep.curves import Curve, Sweep, Value
from retain.commands.sweep.outcome import reached
from retain.commands.sweep.points import Scale

JOURNAL, SHARE = "optuna.journal", "share"
FIRST = (0.5, 0.0, 1.0)  # of the way along the scale: where it begins
ATTEMPTS = 20  # to find a value that, rounded, is another than those before
COUNTED = (TrialState.RUNNING, TrialState.COMPLETE)


class Search:
    """The search along one curve: what is proposed is a share of the way along its scale.

    Proposals are those of optuna's multi-objective TPE (Ozaki et al., GECCO 2020), each a function of the sweep's seed,
    the number of the trial, and what was found until then.

    Args:
        made: the sweep.
        curve: one of its curves.
        scale: of the curve.
        trials: values in all; those that have runs already count.
    """

    def __init__(self, made: Sweep, curve: Curve, scale: Scale, trials: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.made, self.curve, self.scale, self.trials = made, curve, scale, trials
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = JournalStorage(JournalFileBackend(str(made.output / JOURNAL)))
        self.study = optuna.create_study(
            storage=storage, study_name=curve.label, directions=["maximize", "minimize"], load_if_exists=True
        )

    @property
    def left(self) -> int:
        """Values that are still to be proposed."""
        return max(0, self.trials - len(self._known()))

    def begin(self) -> list[Value]:
        """Tell the study of the points that are there; returns the values that were proposed and are not finished.

        Among these are values that were finished, and of which more seeds are wanted now.
        """
        for value in self._open():
            self.close(value)
        known = self._known()
        for value in self.made.found(self.curve):
            inside = not isinstance(value, str) and self.scale.low <= value <= self.scale.high
            if inside and value not in known and (point := reached(self.made, self.curve, value)):
                forgetting, learned = point
                self.study.add_trial(
                    optuna.create_trial(
                        params={SHARE: self.scale.share(float(value))},
                        distributions={SHARE: FloatDistribution(0, 1)},
                        values=[learned, forgetting],
                    )
                )
                known.add(value)
        for share in FIRST:
            if self.scale.at(share) not in known:
                self.study.enqueue_trial({SHARE: share}, skip_if_exists=True)
        return sorted(value for value in self._known() if reached(self.made, self.curve, value) is None)

    def next(self) -> Value | None:
        """Another value, of which there are no runs yet; None if there are enough, or if it finds no more."""
        for _ in range(ATTEMPTS if self.left else 0):
            trial = self.study.ask()
            seed = hash((self.made.seeds[0], trial.number)) % 2**32
            self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=len(FIRST), constant_liar=True, seed=seed)
            value = self.scale.at(trial.suggest_float(SHARE, 0, 1))
            if reached(self.made, self.curve, value) is None:
                return value
            self.close(value)
        return None

    def close(self, value: Value) -> None:
        """Tell the study what ``value`` has come to, if all its runs are finished; else it stays open."""
        if (point := reached(self.made, self.curve, value)) is None:
            return
        forgetting, learned = point
        for trial in self._trials():
            if self._value(trial) == value:
                self.study.tell(trial.number, [learned, forgetting], skip_if_finished=True)

    def _known(self) -> set[Value]:
        trials = self.study.get_trials(deepcopy=False, states=COUNTED)
        return {self._value(trial) for trial in trials if SHARE in trial.params}

    def _open(self) -> list[Value]:
        return [self._value(trial) for trial in self._trials()]

    def _trials(self) -> Iterator[FrozenTrial]:
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return (trial for trial in running if SHARE in trial.params)

    def _value(self, trial: FrozenTrial) -> Value:
        return self.scale.at(trial.params[SHARE])
