"""The device that does not exist refuses and counts what a GPU would."""

import pytest
import torch

from tests.support.pretend_cuda import Log


def refuses_mixed_devices(log: Log) -> None:
    with pytest.raises(RuntimeError, match="on the same device, but found cuda:0 and cpu"):
        torch.add(torch.ones(2, device="cuda"), torch.ones(2))
    assert torch.equal((torch.ones(2, device="cuda") * torch.tensor(3.0)).cpu(), torch.full((2,), 3.0))
    assert [event.what for event in log.of("mix")] == ["add"]
    log.events.clear()


def refuses_generators_of_the_cpu(log: Log) -> None:
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.randn(2, device="cuda", generator=torch.Generator().manual_seed(1))
    torch.randn(2, device="cuda", generator=torch.Generator("cuda").manual_seed(2))
    assert list(log.of("generator").values()) == [1]
    log.events.clear()
    torch.randn(2, device="cuda")
    assert list(log.of("default generator").values()) == [1]
    log.events.clear()


def counts_waits(log: Log) -> None:
    x = torch.arange(3, device="cuda")
    assert not log.events
    assert x[1].item() == 1
    assert x.tolist() == [0, 1, 2]
    assert len(x.unique()) == 3
    assert sum(log.of("sync").values()) == 3
    pageable, pinned = torch.ones(2), torch.ones(2).pin_memory()
    for source, non_blocking in ((pageable, False), (pageable, True), (pinned, False), (pinned, True)):
        assert source.to("cuda", non_blocking=non_blocking).device.type == "cuda"
    assert sum(log.of("copy").values()) == 3


def differentiates(log: Log) -> None:
    x = torch.ones(2, 3, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        y = x @ x.T
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None and x.grad.device.type == "cuda"
    assert torch.equal(x.grad.cpu(), torch.full((2, 3), 4.0))


CHECKS = {
    "device: refuses mixed devices": refuses_mixed_devices,
    "device: refuses generators of the CPU": refuses_generators_of_the_cpu,
    "device: counts waits": counts_waits,
    "device: differentiates": differentiates,
}
