"""Chains over energies whose densities are known in closed form."""

import dataclasses
import math

import pytest
import torch

from genzoo.ebm.samplers import (
    HMC,
    MALA,
    ParallelTempering,
    effective_sample_size,
    energy_and_score,
    r_hat,
    sample,
)
from genzoo.ebm.scheduling_langevin import LangevinScheduler


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def standard_normal(x):
    return x.flatten(1).square().sum(dim=1) / 2


def standard_normal_draws(*shape: int, seed: int = 100) -> torch.Tensor:
    return torch.randn(*shape, generator=source(seed), dtype=torch.float64)


def mixture(x):
    """Modes at -4 and 4 with the weights .2 and .8, each of variance 1."""
    logs = [math.log(w) - (x[:, 0] - m).square() / 2 for w, m in ((0.2, -4.0), (0.8, 4.0))]
    return -torch.logsumexp(torch.stack(logs), dim=0)


def variance(samples) -> float:
    return float(samples.square().mean())


def test_energy_and_score_of_a_gaussian():
    x = standard_normal_draws(5, 3)
    energies, score = energy_and_score(standard_normal, x)
    assert torch.equal(energies, standard_normal(x))
    assert torch.equal(score, -x)


def test_langevin_step_is_the_formula():
    scheduler = LangevinScheduler(step_size=0.3)
    scheduler.set_timesteps(1)
    x, score = standard_normal_draws(4, 2), standard_normal_draws(4, 2, seed=1)
    found = scheduler.step(score, 0, x, generator=source()).prev_sample
    noise = torch.randn(4, 2, generator=source(), dtype=torch.float64)
    torch.testing.assert_close(found, x + 0.15 * score + math.sqrt(0.3) * noise)
    assert torch.equal(found, scheduler.step(score, 0, x, source(), return_dict=False)[0])


@pytest.mark.parametrize("step_size", [0.2, 1.0])
def test_unadjusted_langevin_has_the_variance_of_its_recursion(step_size: float):
    """x' = (1 - s/2) x + sqrt(s) xi has the variance 1 / (1 - s/4), not 1."""
    expected = 1 / (1 - step_size / 4)
    x = standard_normal_draws(40_000, 1)
    found = sample(standard_normal, x, LangevinScheduler(step_size=step_size), 60, source())
    assert variance(found.samples) == pytest.approx(expected, rel=0.02)
    assert found.acceptance_rate is None


@pytest.mark.parametrize("step_size", [0.2, 1.0])
@pytest.mark.parametrize("kind", ["MALA", "HMC", "tempering"])
def test_adjusted_chains_keep_a_gaussian(kind: str, step_size: float):
    sampler = {
        "MALA": MALA(step_size),
        "HMC": HMC(math.sqrt(step_size), 4),
        "tempering": ParallelTempering(step_size, (1.0, 2.0)),
    }[kind]
    x = standard_normal_draws(40_000, 1)
    found = sample(standard_normal, x, sampler, 40, source())
    assert variance(found.samples) == pytest.approx(1, abs=0.02)
    assert 0.5 < found.acceptance_rate < 1


def test_a_wrong_proposal_density_would_be_seen():
    """The article has grad U where the proposal has half of it (kexue.fm/archives/6331)."""
    step, x, draws = 0.2, standard_normal_draws(40_000, 1), source()
    for _ in range(40):
        y = x - step / 2 * x + math.sqrt(step) * torch.randn(x.shape, generator=draws).double()
        there = -(y - x + step * x).square() / (2 * step)
        back = -(x - y + step * y).square() / (2 * step)
        ratio = x.square() / 2 - y.square() / 2 + back - there
        x = torch.where(torch.rand(x.shape, generator=draws).double().log() < ratio, y, x)
    assert variance(x) > 1.5


def test_one_leapfrog_step_is_a_step_of_mala():
    x = standard_normal_draws(50, 3)
    one = sample(mixture, x, HMC(0.7, num_leapfrog_steps=1), 5, source())
    other = sample(mixture, x, MALA(0.49), 5, source())
    torch.testing.assert_close(one.samples, other.samples)
    assert one.acceptance_rate == other.acceptance_rate


def test_mala_proposes_what_the_scheduler_does():
    x = standard_normal_draws(200, 3)
    proposed = sample(standard_normal, x, LangevinScheduler(step_size=1.0), 1, source()).samples
    found = sample(standard_normal, x, MALA(1.0), 1, source()).samples
    is_taken = (found != x).any(dim=1)
    assert 0.7 < is_taken.double().mean() < 1
    torch.testing.assert_close(found[is_taken], proposed[is_taken])


def test_leapfrog_conserves_energy_to_second_order():
    """Halving the step quarters the change of the Hamiltonian, so fewer proposals are refused."""
    x = standard_normal_draws(20_000, 10)
    rates = [
        sample(standard_normal, x, HMC(1.0 / n, n), 1, source()).acceptance_rate for n in (2, 4)
    ]
    refused = [1 - rate for rate in rates]
    # The acceptance rate is about 2 * Phi(-c * e^2).
    assert refused[0] / refused[1] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("sampler", [MALA(0.5, 3.0), HMC(0.7, 3, 3.0)])
def test_temperature_widens_the_density(sampler):
    x = math.sqrt(3) * standard_normal_draws(40_000, 1)
    assert variance(sample(standard_normal, x, sampler, 30, source()).samples) == pytest.approx(
        3, rel=0.03
    )


def test_langevin_temperature_is_the_size_of_the_noise():
    x = standard_normal_draws(40_000, 1)
    for scheduler in (
        LangevinScheduler(step_size=0.1, temperature=0.25),
        LangevinScheduler(step_size=0.1, noise_std=math.sqrt(0.025)),
    ):
        found = variance(sample(standard_normal, x, scheduler, 150, source()).samples)
        assert found == pytest.approx(0.25 / (1 - 0.1 / 4), rel=0.03)
    still = LangevinScheduler(step_size=0.1, temperature=0.0)
    assert variance(sample(standard_normal, x, still, 300, source()).samples) < 1e-9


@pytest.mark.parametrize("sampler", [MALA(0.2, bounds=(0.0, 1.0)), HMC(0.2, 3, bounds=(0.0, 1.0))])
def test_bounds_make_a_density_of_a_box(sampler):
    x = torch.rand(20_000, 2, generator=source(1), dtype=torch.float64) / 4
    found = sample(lambda x: 0 * x.sum(dim=1), x, sampler, 100, source()).samples
    assert 0 <= found.min() and found.max() <= 1
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(found.var()) == pytest.approx(1 / 12, rel=0.03)


def test_correlated_gaussian_in_two_dimensions():
    covariance = torch.tensor([[2.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
    precision, mean = covariance.inverse(), torch.tensor([3.0, -1.0], dtype=torch.float64)

    def energy(x):
        return (((x - mean) @ precision) * (x - mean)).sum(dim=1) / 2

    x = standard_normal_draws(20_000, 2)
    for sampler in (MALA(0.3), HMC(0.4, 5)):
        found = sample(energy, x, sampler, 200, source()).samples
        torch.testing.assert_close(found.mean(dim=0), mean, atol=0.05, rtol=0)
        torch.testing.assert_close(found.T.cov(), covariance, atol=0.1, rtol=0)


def test_parallel_tempering_finds_the_weights_of_the_modes():
    x = torch.full((4_000, 1), -4.0, dtype=torch.float64)  # all in the lesser mode
    alone = sample(mixture, x, MALA(0.5), 300, source()).samples
    assert float((alone > 0).double().mean()) < 0.1
    sampler = ParallelTempering(0.5, (1.0, 2.0, 4.0, 8.0))
    found = sample(mixture, x, sampler, 300, source()).samples
    assert float((found > 0).double().mean()) == pytest.approx(0.8, abs=0.03)
    assert variance(found - 4 * found.sign()) == pytest.approx(1, abs=0.1)


def test_parallel_tempering_counts_swaps():
    sampler = ParallelTempering(0.5, (1.0, 2.0, 4.0))
    x = standard_normal_draws(500, 1)
    state, draws = sampler.start(standard_normal, x), source()
    for _ in range(20):
        state = sampler.step(standard_normal, state, draws)
    assert state.num_swapped.shape == (2,) and (0 < state.num_swapped).all()
    assert (state.num_swapped <= 10).all()  # each pair has every other turn
    energies, scores = energy_and_score(standard_normal, state.replicas.samples)
    torch.testing.assert_close(state.replicas.energies, energies)
    torch.testing.assert_close(state.replicas.scores, scores)


def test_noise_first_is_the_same_chain_with_other_ends():
    """Noise, descent, noise, descent: as descent and noise after one first noise."""
    x = standard_normal_draws(30, 2)
    first = LangevinScheduler(step_size=0.2, noise_first=True)
    found = sample(standard_normal, x, first, 4, source()).samples
    draws = source()
    for _ in range(4):
        x = x + math.sqrt(0.2) * torch.randn(30, 2, generator=draws, dtype=torch.float64)
        x = x - 0.1 * x
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize("noise_first", [False, True])
def test_the_loop_of_diffusers_is_a_chain(noise_first: bool):
    """Steps as a user of diffusers writes them."""
    x = standard_normal_draws(30, 2)
    scheduler = LangevinScheduler(step_size=0.2, noise_first=noise_first)
    expected = sample(standard_normal, x, scheduler, 4, source()).samples
    draws = source()
    scheduler.set_timesteps(4)
    x = scheduler.begin(x, draws)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        _, score = energy_and_score(standard_normal, seen)
        x = scheduler.step(score, t, x, generator=draws).prev_sample
    assert torch.equal(x, expected)


def test_mala_proposes_what_the_scheduler_does_at_a_temperature():
    """LangevinScheduler(s / T, T) for MALA(s, T), which takes nearly all of such small steps."""
    x = standard_normal_draws(50, 2)
    tempered = sample(standard_normal, x, LangevinScheduler(1e-4 / 3, 3.0), 1, source()).samples
    adjusted = sample(standard_normal, x, MALA(1e-4, 3.0), 1, source())
    is_taken = (adjusted.samples != x).all(dim=1)
    assert is_taken.double().mean() > 0.9
    torch.testing.assert_close(adjusted.samples[is_taken], tempered[is_taken])


@pytest.mark.parametrize(
    "sampler",
    [
        MALA(0.1, bounds=(0, 1)),
        HMC(0.1, bounds=(0, 1)),
        ParallelTempering(0.1, bounds=(0, 1)),
    ],
)
def test_chains_begin_within_bounds(sampler):
    with pytest.raises(ValueError, match=r"chains must begin within the bounds \(0, 1\)"):
        sample(standard_normal, torch.full((3, 2), 5.0), sampler, 2)


@pytest.mark.parametrize("keep_every", [0, -2, 9])
def test_states_that_cannot_be_kept(keep_every: int):
    with pytest.raises(ValueError, match=rf"keep_every must be in 1 .. 5, got {keep_every}"):
        sample(standard_normal, torch.zeros(3, 2), MALA(0.1), 5, keep_every=keep_every)


def test_swaps_are_counted():
    """Between equal energies every swap is made, and each pair is asked every other step."""
    flat = ParallelTempering(0.1, (1.0, 2.0, 3.0, 4.0))
    for steps in (2, 3, 8):
        found = sample(lambda x: 0 * x.sum(dim=1), torch.zeros(5, 2), flat, steps, source())
        assert found.swap_rates.tolist() == [1.0, 1.0, 1.0]
    steep = sample(standard_normal, torch.zeros(200, 2), flat, 50, source())
    assert ((0.1 < steep.swap_rates) & (steep.swap_rates < 1)).all()
    assert sample(standard_normal, torch.zeros(2, 2), MALA(0.1), 2).swap_rates is None


def test_papers_constants_are_rescaled_exactly():
    """[0, 1] with a step of 10, noise .005, gradients cut at .01, as the paper's code has it."""

    def energy(x):  # of pixels in [0, 1]
        return (x - 0.3).square().flatten(1).sum(dim=1) / 500 + (3 * x).sin().flatten(1).sum(1) / 99

    y = torch.rand(8, 1, 4, 4, generator=source(1), dtype=torch.float64)
    x, draws = 2 * y - 1, source()
    theirs = y.clone()
    for _ in range(5):
        theirs = theirs + 0.005 * torch.randn(theirs.shape, generator=draws, dtype=torch.float64)
        _, score = energy_and_score(energy, theirs)
        theirs = (theirs + 10 * score.clamp(-0.01, 0.01)).clamp(0, 1)
    ours = LangevinScheduler(
        step_size=4 * 20, noise_std=0.01, gradient_clip=0.005, clamp=[-1, 1], noise_first=True
    )
    found = sample(lambda z: energy((z + 1) / 2), x, ours, 5, source()).samples
    torch.testing.assert_close(found, 2 * theirs - 1)


def test_gradients_are_cut_by_element_or_by_norm():
    x, score = torch.zeros(2, 4), torch.tensor([[3.0, 0.1, 0, 0], [0.1, 0.1, 0.1, 0.1]])
    options = {"step_size": 2.0, "temperature": 0.0, "gradient_clip": 1.0}
    by_element = LangevinScheduler(**options).step(score, None, x).prev_sample
    assert torch.equal(by_element, score.clamp(-1, 1))
    by_norm = LangevinScheduler(**options, gradient_clip_mode="norm").step(score, None, x)
    torch.testing.assert_close(by_norm.prev_sample[0], score[0] / score[0].norm())
    assert torch.equal(by_norm.prev_sample[1], score[1])


def test_annealing_falls_geometrically():
    scheduler = LangevinScheduler(
        step_size=1.0, final_step_size=0.01, noise_std=0.5, final_noise_std=0.0
    )
    scheduler.set_timesteps(3)
    found = [scheduler._sizes_at(t) for t in scheduler.timesteps]
    assert found == [pytest.approx(pair) for pair in ((1, 0.5), (0.1, 0.25), (0.01, 0))]
    assert len(scheduler) == 3


def test_scheduler_is_saved_and_loaded(tmp_path):
    scheduler = LangevinScheduler(step_size=80.0, noise_std=0.01, clamp=[-1, 1], noise_first=True)
    scheduler.save_pretrained(tmp_path)
    found = LangevinScheduler.from_pretrained(tmp_path)
    x = standard_normal_draws(3, 2).clamp(-1, 1)
    one, other = (sample(standard_normal, x, s, 3, source()).samples for s in (scheduler, found))
    assert torch.equal(one, other)


def test_each_sample_can_have_a_generator_of_its_own():
    x = torch.zeros(3, 2)
    scheduler = LangevinScheduler(step_size=0.1)
    together = scheduler.step(x, None, x, generator=[source(1), source(2), source(3)]).prev_sample
    alone = scheduler.step(x[:1], None, x[:1], generator=source(2)).prev_sample
    assert torch.equal(together[1:2], alone)


def test_states_of_chains_are_kept_and_half_precision_is_not():
    x = torch.zeros(4, 2, dtype=torch.bfloat16)
    found = sample(standard_normal, x, MALA(0.1), 10, source(), keep_every=5)
    assert found.trajectory.shape == (2, 4, 2) and found.samples.dtype == torch.float32
    assert torch.equal(found.trajectory[-1], found.samples)
    torch.testing.assert_close(found.energies, standard_normal(found.samples))
    assert sample(standard_normal, x, MALA(0.1), 10, source()).trajectory is None


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_effective_sample_size_of_an_autoregression(correlation: float):
    draws, length, chains = source(), 5_000, 8
    x, states = torch.randn(chains, generator=draws, dtype=torch.float64), []
    for _ in range(length):
        noise = torch.randn(chains, generator=draws, dtype=torch.float64)
        x = correlation * x + math.sqrt(1 - correlation**2) * noise
        states.append(x)
    expected = length * chains * (1 - correlation) / (1 + correlation)
    trajectory = torch.stack(states)
    assert float(effective_sample_size(trajectory)) == pytest.approx(expected, rel=0.1)
    assert float(r_hat(trajectory)) == pytest.approx(1, abs=0.01)


def test_r_hat_sees_chains_that_have_not_met():
    trajectory = standard_normal_draws(100, 4, 2)
    trajectory[:, 0, 1] += 5
    found = r_hat(trajectory)
    assert found.shape == (2,) and found[0] < 1.05 and found[1] > 1.5
    assert effective_sample_size(trajectory)[1] < 0.1 * effective_sample_size(trajectory)[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_chains_that_are_no_numbers_are_worth_nothing(value: float):
    trajectory = standard_normal_draws(100, 4, 2)
    trajectory[50, 2, 0] = value
    sizes = effective_sample_size(trajectory)
    assert sizes.isnan().tolist() == [True, False]
    assert r_hat(trajectory).isnan().tolist() == [True, False]


def test_chains_that_never_move_are_worth_nothing():
    """No proposal is taken at such a step; a coordinate that is the same in all is worth NaN."""
    x = torch.full((4, 3), 0.1)
    x[:, 1] = torch.arange(4)
    found = sample(standard_normal, x, MALA(1e6), 50, source(), keep_every=1)
    assert found.acceptance_rate == 0
    sizes, ratios = effective_sample_size(found.trajectory), r_hat(found.trajectory)
    assert sizes.isnan().tolist() == [True, False, True] and sizes[1] < 10
    assert ratios.isnan().tolist() == [True, False, True] and ratios[1] == math.inf


@pytest.mark.parametrize("sampler", [MALA(0.1), HMC(0.1, 2), ParallelTempering(0.1)])
def test_steps_remember_nothing(sampler):
    """A network's weights want gradients; a loop that users write holds no graph of them."""
    scale = torch.ones(1, requires_grad=True)

    def energy(x):
        return scale * x.square() / 2

    state = sampler.step(energy, sampler.start(energy, torch.zeros(3)), source())
    assert not state.samples.requires_grad and not state.energies.requires_grad
    chains = LangevinScheduler(step_size=0.1)
    assert not chains.chain(lambda x: -scale * x, torch.ones(3), 2, source()).requires_grad
    assert chains.step(-scale * torch.ones(3), None, torch.ones(3)).prev_sample.requires_grad


def test_numbers_without_a_shape_of_their_own():
    """x0 of shape (B,) has the energies x^2 / 2."""
    x = standard_normal_draws(40_000)
    for sampler in (MALA(0.5), HMC(0.5, 3), ParallelTempering(0.5, (1.0, 2.0))):
        found = sample(lambda x: x.square() / 2, x, sampler, 20, source()).samples
        assert found.shape == x.shape and variance(found) == pytest.approx(1, abs=0.02)
    cut = LangevinScheduler(1.0, 0.0, gradient_clip=0.5, gradient_clip_mode="norm")
    assert cut.step(torch.tensor([3.0]), None, torch.zeros(1)).prev_sample.item() == 0.25


def test_a_step_after_the_last():
    scheduler = LangevinScheduler(step_size=0.1)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="timestep must be one of 0 to 2, got 3"):
        scheduler.step(torch.zeros(2, 2), 3, torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LangevinScheduler(step_size=0), "step_size must be positive"),
        (lambda: LangevinScheduler(temperature=-1), "temperature must be at least 0"),
        (lambda: LangevinScheduler(temperature=2.0, noise_std=1.0), "give one"),
        (lambda: LangevinScheduler(final_noise_std=1.0), "give both"),
        (lambda: LangevinScheduler(gradient_clip=0), "gradient_clip must be positive"),
        (lambda: LangevinScheduler(gradient_clip_mode="l1"), "'element' or 'norm'"),
        (lambda: LangevinScheduler(clamp=[1, -1]), "clamp must be"),
        (lambda: LangevinScheduler().set_timesteps(0), "at least 1"),
        (lambda: LangevinScheduler().step(torch.ones(2), None, torch.ones(3)), "one shape"),
        (lambda: MALA(0.1, temperature=0), "no density"),
        (lambda: HMC(0.1, temperature=0), "no density"),
        (lambda: HMC(-0.1), "step_size must be positive"),
        (lambda: MALA(0.1, bounds=(1, -1)), r"bounds must be \(low, high\), got \(1, -1\)"),
        (lambda: HMC(0.1, bounds=(1,)), "bounds must be"),
        (lambda: sample(standard_normal, torch.ones(2, 1), MALA, 2), "sampler must be one of"),
        (lambda: sample(standard_normal, torch.ones(2, 1), "mala", 2), "sampler must be one of"),
        (
            lambda: sample(
                standard_normal, torch.full((2, 1), 9.0), LangevinScheduler(clamp=[-1, 1]), 2
            ),
            r"begin within the bounds \[-1, 1\]",
        ),
        (lambda: HMC(0.1, 0), "num_leapfrog_steps"),
        (lambda: ParallelTempering(0.1, (2.0, 1.0)), "rise"),
        (lambda: ParallelTempering(0.1, (0.0, 1.0)), "no density"),
        (lambda: sample(standard_normal, torch.ones(2, 1), MALA(0.1), 0), "num_steps"),
        (lambda: sample(lambda x: x, torch.ones(2, 1), MALA(0.1), 1), "one number for each"),
        (lambda: sample(lambda x: 0.5, torch.ones(2, 1), MALA(0.1), 1), "one number.*got 0.5"),
        (
            lambda: sample(standard_normal, torch.ones(2, 1), MALA(0.1), 1, [source(), source(1)]),
            "only a LangevinScheduler",
        ),
        (lambda: sample(lambda x: x[:, 0].log(), -torch.ones(2, 1), MALA(0.1), 1), "2 of 2"),
        (
            lambda: sample(
                lambda x: -(x[:, 0] ** 4), torch.full((2, 1), 9.0), LangevinScheduler(), 9
            ),
            "smaller ones",
        ),
        (lambda: r_hat(torch.ones(3, 2)), "4 states"),
        (lambda: effective_sample_size(torch.ones(3, 2)), "4 states"),
    ],
)
def test_bad_input_gets_a_sentence(make, words: str):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_proposal_that_is_no_number_is_refused():
    def energy(x):
        return torch.where(x[:, 0] > 0, torch.nan, standard_normal(x))

    x = -torch.ones(100, 1)
    found = sample(energy, x, MALA(1.0), 20, source())
    assert (found.samples <= 0).all() and found.acceptance_rate < 0.9


def test_samplers_are_values():
    assert MALA(0.1) == MALA(0.1) and dataclasses.replace(MALA(0.1), step_size=0.2) == MALA(0.2)
