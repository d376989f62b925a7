"""The likelihood that is trained is that of the posterior that is published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.core.posterior import boundary_posterior
from trainer.networks.segmental import SegmentalLikelihood

STEPS_UM = [1.5, 3.0, 5.0, 12.0]


@given(st.lists(st.integers(1, 25), min_size=1, max_size=4), st.integers(0, 10_000))
def test_each_stack_of_a_batch_has_the_posteriors_own_log_probability(lengths, seed) -> None:
    rng = np.random.default_rng(seed)
    n = max(lengths)
    z_um = np.cumsum(rng.choice(STEPS_UM, (len(lengths), n)), axis=1)
    evidence = rng.uniform(-0.3, 0.3, (len(lengths), n, 3))
    weight = rng.choice([0.0, 0.3, 1.0], (len(lengths), n))
    labels = np.sort(rng.integers(0, 3, (len(lengths), n)), axis=1)
    likelihood = SegmentalLikelihood()
    batch = (torch.tensor(one, dtype=torch.float32) for one in (evidence, z_um, weight))
    with torch.no_grad():
        trained = likelihood(*batch, torch.tensor(labels), torch.tensor(lengths)).numpy()
    for row, length in enumerate(lengths):
        cut = (row, slice(length))
        posterior = boundary_posterior(z_um[cut], evidence[cut], weight[cut], likelihood.prior())
        published = posterior.of_labels(labels[cut])
        if trained[row] == 0:  # ruled out by the prior: it teaches nothing
            assert published < 1e-6 or published == pytest.approx(1.0, abs=1e-3)
        else:
            assert trained[row] == pytest.approx(np.log(published), abs=5e-3)
