"""UCE's closed form against a least-squares solver that knows nothing of it, and its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saferedir.training.uce.solve import Sums, factors, input_edit, solve

OUT, IN = 7, 12


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(erased: int = 9, preserved: int = 5) -> dict[str, Tensor]:
    return {
        "erased": rand(erased, IN, seed=1),
        "targets": rand(erased, IN, seed=2),
        "preserved": rand(preserved, IN, seed=3),
        "s_e": rand(erased, seed=4).abs(),
        "s_p": rand(preserved, seed=5).abs(),
    }


def by_least_squares(weight: Tensor, given: dict[str, Tensor], ridge: float) -> Tensor:
    """sum s_e |W' c - W t|^2 + sum s_p |W' p - W p|^2 + ridge |W' - W|^2, stacked and given to a solver."""
    root_e, root_p = given["s_e"].sqrt()[:, None], given["s_p"].sqrt()[:, None]
    rows = torch.cat([root_e * given["erased"], root_p * given["preserved"], ridge**0.5 * torch.eye(IN).double()])
    wanted = torch.cat(
        [root_e * (given["targets"] @ weight.T), root_p * (given["preserved"] @ weight.T), ridge**0.5 * weight.T]
    )
    return torch.linalg.lstsq(rows, wanted, driver="gelsd").solution.T


@pytest.mark.parametrize("ridge", [1e-3, 0.5, 20.0])
@pytest.mark.parametrize(("erased", "preserved"), [(1, 0), (9, 5), (40, 30)])
def test_it_is_the_least_squares_solution(ridge: float, erased: int, preserved: int) -> None:
    weight, given = rand(OUT, IN, seed=0), problem(erased, preserved)
    torch.testing.assert_close(
        solve(weight, Sums.of(**given), ridge), by_least_squares(weight, given, ridge), atol=1e-6, rtol=1e-6
    )


def test_without_a_ridge_it_is_the_smallest_change_that_fits() -> None:
    """The solver of the pseudoinverse has the same residual; three inputs in twelve dimensions fit exactly."""
    weight, given = rand(OUT, IN, seed=0), problem(2, 1)
    edited = solve(weight, Sums.of(**given), 0.0)
    torch.testing.assert_close(edited @ given["erased"].T, weight @ given["targets"].T)
    torch.testing.assert_close(edited @ given["preserved"].T, weight @ given["preserved"].T)
    outside = torch.linalg.svd(torch.cat([given["erased"], given["preserved"]]))[2][3:]
    torch.testing.assert_close(edited @ outside.T, weight @ outside.T)


def test_inputs_orthogonal_to_the_erased_ones_are_left_alone() -> None:
    weight, basis = rand(OUT, IN, seed=0), torch.linalg.qr(rand(IN, IN, seed=6))[0].T
    erased, others = rand(6, 4, seed=7) @ basis[:4], rand(5, 8, seed=8) @ basis[4:]
    sums = Sums.of(erased, rand(6, IN, seed=9), others, torch.ones(6), torch.ones(5))
    edited = solve(weight, sums, 0.5)
    torch.testing.assert_close(edited @ others.T, weight @ others.T, atol=1e-12, rtol=0)
    assert (edited @ erased.T - weight @ erased.T).norm() > 1


def test_a_large_ridge_gives_the_weight_back_and_equal_targets_do() -> None:
    weight, given = rand(OUT, IN, seed=0), problem()
    changes = [(solve(weight, Sums.of(**given), ridge) - weight).norm().item() for ridge in (1.0, 1e3, 1e6, 1e12)]
    assert changes == sorted(changes, reverse=True) and changes[-1] < 1e-9
    same = {**given, "targets": given["erased"]}
    assert torch.equal(solve(weight, Sums.of(**same), 0.5), weight)


@pytest.mark.parametrize("erased", [1, 3, 40])
def test_two_factors_carry_the_edit_at_its_own_rank(erased: int) -> None:
    edit = input_edit(Sums.of(**problem(erased)), 0.5)
    left, right = factors(edit)
    assert left.shape[1] == right.shape[0] == min(erased, IN)
    torch.testing.assert_close(left @ right, edit, atol=1e-8, rtol=0)
    left, right = factors(torch.zeros(IN, IN).double())
    assert left.shape == (IN, 1) and not (left @ right).any()
