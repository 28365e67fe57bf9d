"""Every check that runs on the CUDA device that does not exist, by name."""

from collections.abc import Callable

from tests.gpu import check_card, check_costs, check_device, check_evaluation, check_training
from tests.support.pretend_cuda import Log

CHECKS: dict[str, Callable[[Log], None]] = {
    **check_device.CHECKS,
    **check_training.CHECKS,
    **check_evaluation.CHECKS,
    **check_costs.CHECKS,
    **check_card.CHECKS,
}
