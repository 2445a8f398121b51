"""Forwards of models whose loss is not labels against logits: ``Task(..., forward=...)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retain.task.likelihood import Draws
from retain.task.rows import Batch


@dataclass(frozen=True, eq=False)
class NoisePrediction:
    """A diffusion model: noise is added to every row, and the model says which (DDPM, arXiv 2006.11239, equation 14).

    A batch has ``sample`` (N, ...), the clean images or latents, and ``row`` (N,), the number of each row; all else
    goes to the model under its name, in its dtype. Outputs and targets have the shape of ``sample``; the loss is
    ``SquaredError()``.

    In training mode timesteps and noise come from the global generator, new ones every time. In eval mode they are
    functions of the row's number, so that importance and scores are of the same noise whenever they are measured.

    Args:
        scheduler: of diffusers: its ``add_noise``, number of timesteps and ``prediction_type`` are used.
        seed: of the noise in eval mode.
    """

    scheduler: Any
    seed: int = 0

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """
        Raises:
            ValueError: a batch without ``sample`` and ``row``, or a scheduler that predicts something else.
        """
        (noisy, time), others, target = self.noised(model, batch)
        found = model(noisy, time, **others).sample
        return found[:, : target.shape[1]], target  # a learned variance comes behind

    def noised(self, model: Any, batch: Batch) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor], Tensor]:
        """What the model is given, ``sample`` with noise (N, ...) and timesteps (N,), the rest by name; and the target.

        Raises:
            ValueError: as when it is called.
        """
        if not isinstance(batch, Mapping) or not {"sample", "row"} <= batch.keys():
            raise ValueError("noise prediction needs batches with `sample` (N, ...) and `row` (N,), the rows' numbers")
        others = dict(batch)
        clean, rows = others.pop("sample"), others.pop("row")
        time, noise = self._drawn(clean, None if model.training else rows)
        noisy = self.scheduler.add_noise(clean, noise, time)
        if (dtype := getattr(getattr(model, "module", model), "dtype", None)) is not None:  # module: DDP's
            noisy, others = noisy.to(dtype), {k: x.to(dtype) if x.is_floating_point() else x for k, x in others.items()}
        return (noisy, time), others, self._target(clean, noise, time)

    def _drawn(self, clean: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """A timestep (N,) and noise (N, ...) for every row."""
        steps = self.scheduler.config.num_train_timesteps
        if rows is None:
            return torch.randint(steps, (len(clean),), device=clean.device), torch.randn_like(clean)
        one, every = (torch.ones(shape, dtype=torch.bool, device=clean.device) for shape in (len(clean), clean.shape))
        time = (Draws(rows, self.seed).uniform(one) * steps).long()
        return time, Draws(rows, self.seed + 1).normal(every, clean).reshape(clean.shape)

    def _target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self.scheduler.get_velocity(clean, noise, time)
        if kind == "sample":
            return clean
        raise ValueError(f"prediction_type {kind!r} is not supported; known: epsilon, v_prediction, sample")


@dataclass(frozen=True, eq=False)
class AmongTexts:
    """A dual encoder (CLIP, SigLIP): which of fixed ``texts`` belongs to a row's image; ``labels`` (N,) says it.

    The contrastive loss of a batch has no part that is one row's own: who else is in the batch decides it. Against
    fixed texts a row has its own likelihood, p(text | image), which trains both towers. The texts are run once for all
    rows of a batch, so that their tower's share cannot be split among rows: importance is measured one row at a time.

    Args:
        texts: of the text tower, by name, one row a class: (C, T) each.
    """

    texts: Mapping[str, Tensor]

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """
        Raises:
            ValueError: several rows at once where importance is measured.
        """
        if not isinstance(batch, Mapping):
            raise ValueError("choosing among texts needs batches with names, `labels` among them")
        images = dict(batch)
        labels = images.pop("labels")
        if len(labels) > 1 and not model.training and torch.is_grad_enabled():
            raise ValueError("all rows share the texts, so their importance needs Task(..., one_by_one=True)")
        texts = {name: x.to(labels.device) for name, x in self.texts.items()}
        return model(**images, **texts).logits_per_image, labels
