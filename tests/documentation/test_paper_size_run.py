"""The arithmetic of docs/performance.md, "What a paper-size run needs", and of the machines in docs/clusters.md.

Every row follows from the inputs on the page.
"""

import dataclasses
import json
import math
import re

import pytest
import yaml

from pipelines.experiments.catalogue import gcc_yfcc_30e
from pipelines.training.cost import CostConfig, bytes_per_image, estimate
from tests.support.pages import ROOT

PAGE = (ROOT / "docs/performance.md").read_text()
SECTION = PAGE.partition("## What a paper-size run needs\n")[2].partition("\n## ")[0]
CLUSTERS = (ROOT / "docs/clusters.md").read_text()
README = (ROOT / "README.md").read_text()
PAPER = gcc_yfcc_30e()
VCPUS_OF_A_CPU_NODE = 16


def table(first_header: str, text: str = SECTION) -> list[list[str]]:
    """The rows of the table whose first column has this header."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first_header} |"):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert rows, first_header
    return rows


def words(page: str) -> str:
    """The page without the ends of its lines."""
    return " ".join(page.split())


def value(cell: str) -> float:
    return float(cell.replace(",", ""))


INPUTS = {name: value(amount) for name, amount, _ in table("input")}
MACHINES = table("machines", CLUSTERS)
CARDS = {name: (value(flops), value(memory)) for name, flops, memory, *_ in table("card")}
MEASURED = json.loads((ROOT / "docs/gpu/first_look.json").read_text())["speed"]


def fastest_at(batch_size: int) -> float:
    """Images/s of the H200 with a batch of this size: the faster of eager and compiled."""
    kinds = [MEASURED[f"batch {batch_size} K 3 {kind}"]["images_per_second"] for kind in ("eager", "compiled")]
    return max(kinds)


def speed_at(slice_size: int) -> float:
    """What the H200 did with a slice of this size; between two that were measured, by the time of a step."""
    sizes = (64, 256, 1024)
    if slice_size in sizes:
        return round(fastest_at(slice_size))
    low, high = max(size for size in sizes if size < slice_size), min(size for size in sizes if size > slice_size)
    share = (slice_size - low) / (high - low)
    seconds = (1 - share) * low / round(fastest_at(low)) + share * high / round(fastest_at(high))
    return slice_size / seconds


def share_of_h200(card: str) -> float:
    return min(own / best for own, best in zip(CARDS[card], CARDS["H200"], strict=True))


def row(gpus: str, batch_size: int, slice_size: int) -> list[str]:
    """The row of the page for so many GPUs, a global batch and a slice of these sizes."""
    number, card = gpus.split(" × ")
    num_gpus = int(number)
    num_parts = batch_size // num_gpus // slice_size
    repeated = (num_parts - 1) / num_parts
    per_gpu = min(speed_at(slice_size), speed_at(1024) * share_of_h200(card)) * 3 / (3 + repeated)
    per_gpu = float(round(per_gpu))
    training = dataclasses.replace(
        PAPER.training, global_batch_size=batch_size, num_steps=PAPER.training.num_steps * 4096 // batch_size
    )
    experiment = dataclasses.replace(
        PAPER, training=training, ingest=dataclasses.replace(PAPER.ingest, slice_size=slice_size)
    )
    cores = math.ceil(per_gpu * num_gpus / INPUTS["images/s a core reads"])
    per_gpu_hour = INPUTS[
        "example: USD a GPU hour, A10G" if card == "A10G" else "example: USD a GPU hour, H100 or H200"
    ]
    price = num_gpus * per_gpu_hour + cores * INPUTS["example: USD a core hour"]
    config = CostConfig(
        num_gpus=num_gpus,
        images_per_second_per_gpu=per_gpu,
        images_per_second_per_core=INPUTS["images/s a core reads"],
        price_per_hour=price,
    )
    found = estimate(config, experiment)
    assert found["reading_cores"] == cores
    rate = found["images_per_second"]
    return [
        gpus,
        f"{batch_size:,}",
        f"{num_parts} × {slice_size:,}",
        f"{per_gpu:,.0f}",
        f"{rate:,.0f}",
        f"{found['hours']:,.1f}",
        f"{cores:,}",
        f"{rate / slice_size:,.0f}",
        f"{found['slice_bytes_per_second'] / 1e9:,.1f}",
        f"{rate * INPUTS['bytes an image, stored'] / 1e9:,.2f}",
        f"{price:,.1f}",
        f"{found['total_usd']:,.0f}",
    ]


@pytest.mark.parametrize("written", table("GPUs"), ids=lambda written: f"{written[0]}, {written[1]}")
def test_every_row_follows_from_the_inputs(written: list[str]) -> None:
    gpus, batch_size, parts, *_ = written
    slice_size = parts.split(" × ")[1]
    assert written == row(gpus, int(value(batch_size)), int(value(slice_size)))


def machine_row(machines: str, card: str, num_gpus: int, num_vcpus: int, slice_size: int) -> list[str]:
    """The row of docs/clusters.md for all GPUs of these machines, at the paper's batch."""
    _, _, parts, per_gpu, *_ = row(f"{num_gpus} × {card}", 4096, slice_size)
    reading = math.ceil(2 * num_gpus * value(per_gpu) / INPUTS["images/s a core reads"])
    missing = reading + num_gpus * PAPER.training.cpus_per_worker - num_vcpus
    nodes = max(0, math.ceil(missing / VCPUS_OF_A_CPU_NODE))
    return [machines, f"{num_gpus} × {card}", f"{num_vcpus}", parts, per_gpu, f"{reading}", f"{nodes}"]


@pytest.mark.parametrize("written", MACHINES, ids=lambda written: written[0])
def test_every_machine_has_the_cpu_nodes_that_it_needs(written: list[str]) -> None:
    machines, gpus, vcpus, parts, *_ = written
    number, card = gpus.split(" × ")
    assert written == machine_row(machines, card, int(number), int(vcpus), int(value(parts.split(" × ")[1])))


def test_the_example_of_faster_gpus_follows_from_the_rule() -> None:
    reading = math.ceil(2 * 8 * 8000 / INPUTS["images/s a core reads"])
    of_workers = 8 * PAPER.training.cpus_per_worker
    nodes = math.ceil((reading + of_workers - 192) / VCPUS_OF_A_CPU_NODE)
    assert f"for itself ({PAPER.training.cpus_per_worker} in this experiment)" in words(CLUSTERS)
    assert f"that is {reading} vCPUs, and {nodes} nodes beside a p5.48xlarge" in words(CLUSTERS)
    assert f"= 2 x images/s of all GPUs / {INPUTS['images/s a core reads']:g}" in CLUSTERS


def test_the_cluster_files_have_these_machines() -> None:
    """ray-cluster.yaml: vCPUs and GPUs of the instance. KubeRay: a pod leaves the node's own services some vCPUs."""
    machines = {name: (gpus, int(vcpus)) for name, gpus, vcpus, *_ in MACHINES}
    types = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["available_node_types"]
    instance = types["gpu-on-demand"]["node_config"]["InstanceType"]
    gpus, vcpus = machines[f"1 × {instance}"]
    most = types["gpu-on-demand"]["max_workers"]
    assert f"{most} × {instance} (ray-cluster.yaml)" in machines
    for name in ("gpu-on-demand", "gpu-spot"):
        assert types[name]["resources"] == {"CPU": vcpus, "GPU": int(gpus.split(" × ")[0])}
    assert types["cpu"]["resources"] == {"CPU": VCPUS_OF_A_CPU_NODE}
    assert types["cpu"]["node_config"]["InstanceType"] == "m6i.4xlarge"
    counts = {"cpu": [types["cpu"]["max_workers"]]}
    for file in ("job/ray-job.yaml", "cluster/ray-cluster.yaml"):
        spec = yaml.safe_load((ROOT / "infra/kuberay" / file).read_text())["spec"]
        groups = {group["groupName"]: group for group in spec.get("rayClusterSpec", spec)["workerGroupSpecs"]}
        counts["cpu"].append(groups["cpu"]["maxReplicas"])
        asked = {name: groups[name]["template"]["spec"]["containers"][0]["resources"]["requests"] for name in groups}
        assert asked["gpu"]["nvidia.com/gpu"] == gpus.split(" × ")[0]
        assert vcpus - 4 <= int(asked["gpu"]["cpu"]) < vcpus
        assert int(asked["cpu"]["cpu"]) == VCPUS_OF_A_CPU_NODE - 1
    assert counts["cpu"] == [4, 8, 8] and "ray-cluster.yaml allows 4 CPU nodes and infra/kuberay 8" in CLUSTERS


def test_one_h100_without_a_cpu_node_waits_for_its_data() -> None:
    per_core, num_images = INPUTS["images/s a core reads"], PAPER.training.num_steps * PAPER.training.global_batch_size
    reading = 16 - PAPER.training.cpus_per_worker
    rate, full = reading / 2 * per_core, value(row("1 × H100", 4096, 1024)[3])
    hours = [f"{num_images / speed / 3600:.0f} h" for speed in (rate, full)]
    told = f"{reading} of them read {rate:,.0f} images/s: {hours[0]} instead of the {hours[1]} at {full:,.0f}"
    assert told in words(CLUSTERS)


def test_one_cpu_node_beside_8_h100_has_little_to_spare() -> None:
    reading = 192 + VCPUS_OF_A_CPU_NODE - 8 * PAPER.training.cpus_per_worker
    needed = math.ceil(2 * 8 * value(row("8 × H100", 4096, 512)[3]) / INPUTS["images/s a core reads"])
    most = reading * INPUTS["images/s a core reads"] / 2 / 8
    assert f"leaves {reading - needed} vCPUs to spare, up to {most:,.0f} images/s a GPU" in words(CLUSTERS)


def test_the_readme_has_hours_of_the_table() -> None:
    hours = {gpus: value(cells[3]) for gpus, size, *cells in table("GPUs") if size == "4,096"}
    assert f"estimate {hours['16 × A10G']:.0f} hours for 16 A10G, and {hours['8 × H100']} for 8 H100" in words(README)


def test_the_memory_of_slices_follows_from_the_rule() -> None:
    size = 3 * 8 * (1 + 1) * 512 * bytes_per_image(PAPER) / 1e9
    assert f"{size:.1f} GB for 8 workers with slices of 512" in words(CLUSTERS)


@pytest.mark.parametrize("written", table("card"), ids=lambda written: written[0])
def test_every_card_is_scaled_from_the_one_that_was_measured(written: list[str]) -> None:
    card, *_, share, images = written
    assert share == f"{share_of_h200(card):.2f}"
    assert images == f"{speed_at(1024) * share_of_h200(card):,.0f}"


def test_the_sizes_on_disk_follow_from_the_number_of_pairs() -> None:
    for pairs, stored, written in re.findall(r"([\d,]+) pairs × (\d+) kB = ([\d.]+ TB)", SECTION):
        assert written == f"{value(pairs) * value(stored) / 1e9:.2f} TB"
    assert SECTION.count(" pairs × ") == 2
    images = PAPER.training.num_steps * PAPER.training.global_batch_size
    assert f"{images:,}" in SECTION
    assert f"{images * INPUTS['bytes an image, stored'] / 1e12:.0f} TB" in SECTION
    assert f"{bytes_per_image(PAPER):,} bytes" in SECTION


def test_the_measured_speeds_are_those_of_the_first_look() -> None:
    for batch_size in (64, 256, 1024):
        assert f"{fastest_at(batch_size):,.0f}" in SECTION


@pytest.mark.parametrize("slice_size", [256, 1024])
def test_between_measured_sizes_the_time_of_a_step_is_interpolated(slice_size: int) -> None:
    assert speed_at(slice_size) == round(fastest_at(slice_size))
    assert fastest_at(256) < speed_at(512) < fastest_at(1024)
