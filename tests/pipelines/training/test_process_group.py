"""Where gloo listens; that machines then reach one another is seen in tests/end_to_end/test_cluster.py."""

import os

import pytest
import ray

from pipelines.training.process_group import choose_interface, interface_of


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.254") is None


def test_the_nodes_interface_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine0")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine0"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == interface_of(ray.util.get_node_ip_address())
