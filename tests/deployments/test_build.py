from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app as bind_names
from ray.serve.schema import ServeDeploySchema

from deployments import build
from deployments.build import app, build_app
from deployments.composed import Composed
from orchestrator.config.serving import AppSettings, Autoscaling, MemberOptions, ServingSettings
from orchestrator.errors import ConfigError, NotFoundError
from orchestrator.store import releases
from orchestrator.store.store import Store
from tests.deployments.toys import DIGITS, SMALL_MLP, open_store, put

SERVE_YAML = Path(build.__file__).parent / "serve.yaml"


def deployments(application: Any) -> dict[str, Any]:
    built = bind_names(application, name="test", default_runtime_env=None)
    return {deployment.name: deployment for deployment in built.deployments}


def test_shared_members_are_deployed_once(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    found = deployments(build_app(AppSettings(store=str(store.root), specs=specs)))
    kinds = [name.split("-")[0] for name in found]
    composed = ["parallel", *["sequential"] * 3, *["weighted_mix"] * 2]
    assert sorted(kinds) == ["ingress", *["member"] * 7, *composed]
    assert {"parallel-average", "sequential-cascade", "weighted_mix-mix", "ingress"} <= set(found)
    assert all(found[name].ray_actor_options["num_cpus"] == 0 for name in found if "member" not in name)


def test_a_kind_without_a_class_of_its_own_is_deployed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "COMPOSED", {})
    store, specs = open_store(tmp_path)
    found = deployments(build_app(AppSettings(store=str(store.root), specs=specs[:1])))
    assert found["parallel-average"].func_or_class is Composed


def test_another_batch_size_is_another_deployment(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    other = specs[0].model_copy(update={"name": "other", "batch": 64})
    found = deployments(build_app(AppSettings(store=str(store.root), specs=(specs[0], other))))
    assert sum(name.startswith("member-") for name in found) == 6


def test_options_belong_to_the_member(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    serving = ServingSettings(
        replicas=2, members={"cnn": MemberOptions(replicas=3, cpus=0.5, max_ongoing_requests=7)}
    )
    found = deployments(build_app(AppSettings(store=str(store.root), specs=specs[:1], serving=serving)))
    cnn = next(deployment for name, deployment in found.items() if name.startswith("member-cnn-"))
    mlp = next(deployment for name, deployment in found.items() if name.startswith("member-mlp0-"))
    assert (cnn.num_replicas, cnn.ray_actor_options["num_cpus"], cnn.max_ongoing_requests) == (3, 0.5, 7)
    assert (mlp.num_replicas, mlp.ray_actor_options["num_cpus"]) == (2, 0.1)


def test_options_of_nobody_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, specs = open_store(tmp_path)
    serving = ServingSettings(members={"cnn": MemberOptions(), "cn": MemberOptions(gpus=1)})
    build_app(AppSettings(store=str(store.root), specs=specs[:1], serving=serving))
    assert [record.args for record in caplog.records if "no served ensemble" in record.msg] == [("cn",)]


def test_a_fused_ensemble_is_held_by_the_ingress(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    members = {"cnn": MemberOptions(placement="distributed", cpus=0.5), "mlp0": MemberOptions(cpus=0.25)}
    serving = ServingSettings(placement="fused", replicas=2, members=members)
    found = deployments(build_app(AppSettings(store=str(store.root), specs=specs[:3], serving=serving)))
    kinds = sorted(name.split("-")[0] for name in found)
    assert kinds == ["ingress", "member"]
    assert found["ingress"].num_replicas == 2
    assert found["ingress"].ray_actor_options["num_cpus"] == pytest.approx(0.35)


def test_a_member_may_scale_to_none(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    members = {"cnn": MemberOptions(autoscaling=Autoscaling(min_replicas=0, max_replicas=4))}
    serving = ServingSettings(members=members)
    found = deployments(build_app(AppSettings(store=str(store.root), specs=specs[:1], serving=serving)))
    cnn = next(deployment for name, deployment in found.items() if name.startswith("member-cnn-"))
    scaling = cnn._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (0, 4)


def test_specs_by_ref(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    store.set_ref("digits/mix", store.put_spec(specs[2]))
    assert "weighted_mix-mix" in deployments(app({"store": str(store.root), "refs": ["digits/mix"]}))


@pytest.mark.parametrize("what", ["manifest.json", "weights.safetensors"])
def test_a_live_release_with_a_damaged_member_keeps_no_server_from_starting(
    tmp_path: Path, what: str
) -> None:
    store, specs = open_store(tmp_path)
    store.set_ref("digits/mix", store.put_spec(specs[2]))
    releases.first(store, "digits/mix")
    new = put(Store(store.root), "new", SMALL_MLP, DIGITS, 77)
    digest = releases.put(store, "digits/mix", specs[2].model_copy(update={"tree": new}))
    releases.promote(store, "digits/mix", digest)
    damaged = store.root / "artifacts" / new.digest / what
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    found = deployments(app({"store": str(store.root), "refs": ["digits/mix"]}))
    assert not any(name.startswith("member-new") for name in found)


def test_the_store_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, specs = open_store(tmp_path)
    monkeypatch.delenv("ORCHESTRATOR_STORE", raising=False)
    with pytest.raises(ConfigError, match="no store is named"):
        app({"refs": ["digits/mix"]})
    monkeypatch.setenv("ORCHESTRATOR_STORE", str(store.root))
    assert app({"specs": [spec.plain() for spec in specs]})


def test_bad_arguments_are_one_sentence(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    root = str(store.root)
    with pytest.raises(ConfigError, match="nothing to serve"):
        app({"store": root})
    with pytest.raises(ConfigError, match=r"serving\.replica\. did you mean 'replicas'"):
        app({"store": root, "refs": ["a"], "serving": {"replica": 1}})
    with pytest.raises(ConfigError, match="same name: average"):
        build_app(AppSettings(store=root, specs=(specs[0], specs[0])))
    with pytest.raises(ConfigError, match="absolute path"):
        build_app(AppSettings(store="runs/store", specs=specs))
    with pytest.raises(NotFoundError):
        build_app(AppSettings(store=root, refs=("digits/none",)))
    with pytest.raises(NotFoundError):
        build_app(AppSettings(store=str(tmp_path / "none"), specs=specs))


def test_a_spec_must_fit_its_artifacts(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    wrong = specs[0].model_copy(update={"signature": DIGITS.model_copy(update={"outputs": 9})})
    with pytest.raises(ConfigError, match=r"average: member mlp0 has another outputs .*10 instead of 9"):
        build_app(AppSettings(store=str(store.root), specs=(wrong,)))


def test_names_of_deployments_are_plain(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    member = put(Store(store.root), "front/p3 #1", SMALL_MLP, DIGITS, 9)
    tree = specs[0].tree.model_copy(update={"members": (member, member)})
    named = specs[0].model_copy(update={"tree": tree})
    found = deployments(build_app(AppSettings(store=str(store.root), specs=(named,))))
    assert any(name.startswith("member-front_p3_1-") for name in found)


def test_serve_yaml_is_a_valid_deploy_file() -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(SERVE_YAML.read_text(encoding="utf-8")))
    (application,) = schema.applications
    assert application.import_path == "deployments.build:app"
    assert schema.http_options.host == "127.0.0.1"
    settings = AppSettings.model_validate({**application.args, "store": "/store"})
    assert settings.refs == ("digits/average", "digits/cascade", "digits/mix")
