"""Factors confined to a basis and free columns."""

import pytest
import torch

from models import filled, tiny_bert, tiny_mlp
from retain import sites
from retain.balanced import balance
from retain.linalg import orthonormalised
from retain.spanned import coefficients, confinable, release, span


def confined(k=3, f=2):
    """A site whose factors are confined, with random coefficients and free columns that have moved."""
    site = next(iter(sites(filled(tiny_bert())).values()))
    confinable(site)
    generator = torch.Generator().manual_seed(0)
    sizes = (len(site.B), site.A.shape[1])
    bases = [orthonormalised(torch.randn(n, k + f, generator=generator)) for n in sizes]
    span(site, *(x[:, :k] for x in bases), *(x[:, k:] for x in bases))
    for parameter in site.parameters:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return site, bases


def test_parametrising_changes_nothing_and_releasing_leaves_what_is_there():
    site = next(iter(sites(filled(tiny_bert())).values()))
    B, A = site.B.clone(), site.A.clone()
    confinable(site)
    assert torch.equal(site.B, B) and torch.equal(site.A, A)
    site, _ = confined()
    B, A = site.B.detach().clone(), site.A.detach().clone()
    release(site)
    assert torch.equal(site.B, B) and torch.equal(site.A, A)


def test_a_factor_reaches_its_basis_and_as_many_directions_more_as_there_are_free_columns():
    site, bases = confined(k=3, f=1)
    for factor, basis in ((site.B.detach(), bases[0][:, :3]), (site.A.detach().T, bases[1][:, :3])):
        outside = factor - basis @ (basis.T @ factor)
        assert outside.norm() > 1e-3 and torch.linalg.matrix_rank(outside, rtol=1e-4) == 1


@pytest.mark.parametrize("free", [0, 2])
def test_what_was_written_as_a_stock_factor_is_read_back(free):
    site, _ = confined(f=free)
    B, A = site.B.detach().clone(), site.A.detach().clone()
    for parameter in site.parameters:
        parameter.data.zero_()
    site.set_factors(B, A)
    torch.testing.assert_close(site.B, B, rtol=0, atol=1e-6)
    torch.testing.assert_close(site.A, A, rtol=0, atol=1e-6)


def test_all_that_trains_gets_gradients():
    site, _ = confined()
    (site.B @ site.A).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in site.parameters)
    assert [c.shape for c in coefficients(site)] == [(5, 4), (5, 4)]


def test_another_parametrisation_is_refused():
    site = next(iter(sites(tiny_mlp()).values()))
    balance(site)
    with pytest.raises(ValueError, match="another parametrisation already"):
        confinable(site)
