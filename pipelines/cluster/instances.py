"""Machine types rented by the hour, and their list prices, each with its date and source.

Prices change and differ by region; `groupvit cost --price NAME=USD` overrides them. Spot prices are not listed here,
because they change by the hour.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instance:
    """A machine type."""

    name: str
    num_gpus: int
    gpu: str | None
    num_vcpus: int
    usd_per_hour: float
    """On-demand price for Linux."""
    region: str = "us-east-1"
    date: str = "2026-11"
    """Month in which the price was read."""
    source: str = "listed on demand, read from copies of AWS's list that agree, not from AWS"


INSTANCES = {
    instance.name: instance
    for instance in (
        Instance(name="g5.xlarge", num_gpus=1, gpu="A10G", num_vcpus=4, usd_per_hour=1.006),
        Instance(name="g5.2xlarge", num_gpus=1, gpu="A10G", num_vcpus=8, usd_per_hour=1.212),
        Instance(name="g5.4xlarge", num_gpus=1, gpu="A10G", num_vcpus=16, usd_per_hour=1.624),
        Instance(name="g5.8xlarge", num_gpus=1, gpu="A10G", num_vcpus=32, usd_per_hour=2.448),
        Instance(name="g5.12xlarge", num_gpus=4, gpu="A10G", num_vcpus=48, usd_per_hour=5.672),
        Instance(name="g5.24xlarge", num_gpus=4, gpu="A10G", num_vcpus=96, usd_per_hour=8.144),
        Instance(name="g5.48xlarge", num_gpus=8, gpu="A10G", num_vcpus=192, usd_per_hour=16.288),
        Instance(name="g4dn.xlarge", num_gpus=1, gpu="T4", num_vcpus=4, usd_per_hour=0.526),
        Instance(name="m6i.4xlarge", num_gpus=0, gpu=None, num_vcpus=16, usd_per_hour=0.768),
    )
}
