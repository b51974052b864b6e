import pytest

from partwise.core.plan import LocalPlan
from partwise.local import SGD


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": -2}, r"LocalPlan\(steps=-2\): must be a whole number from 0 on, got -2\. 0 steps count by epochs"),
        ({"batch_size": -3}, r"LocalPlan\(batch_size=-3\): must be a whole number from 0 on"),
        ({"epochs": -1}, r"LocalPlan\(epochs=-1\): must be a whole number from 0 on"),
        ({"steps": 1.5}, r"LocalPlan\(steps=1\.5\): must be a whole number from 0 on"),
        ({"batch_size": "8"}, r"LocalPlan\(batch_size='8'\): must be a whole number from 0 on"),
    ],
)
def test_plans_are_of_whole_numbers(settings, says):
    with pytest.raises(ValueError, match=says):
        LocalPlan(loss=lambda params, batch, rng: params["w"].sum(), optimizer=SGD(0.1), **settings)
