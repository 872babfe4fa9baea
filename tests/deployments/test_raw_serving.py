"""Trees over real artifacts for text, sound and tables behind Ray Serve: what clients send raw gets the
answer of the same rows encoded and walked in this process, whatever the placement."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from deployments.local import serve_locally
from deployments.protocol.model import describe
from orchestrator.client import Client
from orchestrator.cluster import connected
from orchestrator.config.calibration import Reject
from orchestrator.config.encoding import AudioEncoding
from orchestrator.config.ensemble import Cascade, Node, Parallel, Spec, WeightedMix
from orchestrator.config.model import (
    AudioCnn,
    AudioCnnKwargs,
    FtTransformer,
    FtTransformerKwargs,
    Mlp,
    MlpKwargs,
    ModelSettings,
    TextCnn,
    TextCnnKwargs,
    TextNgrams,
    WaveCnn,
    WaveCnnKwargs,
)
from orchestrator.config.serving import AppSettings, MemberOptions, ServingSettings
from orchestrator.config.signature import Signature
from orchestrator.data.encode import encode
from orchestrator.ensemble.reject import fit_reject, rejected
from orchestrator.ensemble.tree import Prediction
from orchestrator.errors import InputError
from orchestrator.pipeline.serving import _infer
from orchestrator.store.store import Store
from tests.deployments.raws import COLUMNS, ROWS, SIGNATURES, TONE, signature, wav
from tests.deployments.toys import in_process, put

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
TEXTS = ["book a flight to rome", "", "play some jazz", "a a a", "to rome", "unheard-of words", "jazz flight"]
SOUNDS = [wav(np.tile(TONE, count), rate=rate) for count in (1, 3, 9) for rate in (8000, 16000)]
VALUES: dict[str, Any] = {"text": TEXTS, "audio": SOUNDS, "table": COLUMNS}
TABLE = SIGNATURES["table"].model_copy(update={"mean": (38.0, 0.0, 38.0), "std": (12.0, 1.0, 12.0)})


@dataclass(frozen=True)
class Running:
    port: int
    store: Store
    specs: dict[str, Spec]

    def expected(self, name: str) -> Prediction:
        spec = self.specs[name]
        assert spec.signature.encoding is not None
        return in_process(self.store, spec, encode(spec.signature.encoding, VALUES[name]))


def specs_of(store: Store) -> Iterator[Spec]:
    """A cascade, a mean and a mix, each of which rejects about a third of the rows."""

    def spec(name: str, of: Signature, tree: Any, *models: ModelSettings) -> Spec:
        members = [put(store, f"{name}{place}", model, of, place) for place, model in enumerate(models)]
        unfitted: Node = tree(members)
        plain = Spec(name=name, tree=unfitted, signature=of)
        assert of.encoding is not None
        found = in_process(store, plain, encode(of.encoding, VALUES[name]))
        reject = fit_reject(Reject(keep=0.6), unfitted, found)
        return plain.model_copy(update={"tree": unfitted.model_copy(update={"reject": reject})})

    yield spec(
        "text",
        SIGNATURES["text"],
        lambda members: Cascade(stages=tuple(members), thresholds=(0.51,)),
        TextNgrams(),
        TextCnn(kwargs=TextCnnKwargs(dim=8, widths=(1, 2), channels=8)),
    )
    yield spec(
        "audio",
        signature(AudioEncoding(rate=8000, length=800)),
        lambda members: Parallel(members=tuple(members)),
        AudioCnn(kwargs=AudioCnnKwargs(mels=8, widths=(8,))),
        WaveCnn(kwargs=WaveCnnKwargs(widths=(8, 8))),
    )
    yield spec(
        "table",
        TABLE,
        lambda members: WeightedMix(members=tuple(members), weights=(0.7, 0.3)),
        Mlp(kwargs=MlpKwargs(widths=(8,))),
        FtTransformer(kwargs=FtTransformerKwargs(dim=8, depth=1, heads=2)),
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = Store(tmp_path_factory.mktemp("raw") / "store")
    specs = tuple(specs_of(store))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    # Text is fused, sound distributed, and the table's members are apart.
    serving = ServingSettings(
        port=port,
        placement="fused",
        compile=False,
        members={name: MemberOptions(placement="distributed") for name in ("audio0", "audio1", "table1")},
    )
    settings = AppSettings(store=str(store.root), specs=specs, serving=serving)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        with connected(cpus=2), serve_locally(settings, ready_s=300):
            yield Running(port, store, {spec.name: spec for spec in specs})


def tensors(name: str) -> list[InferInput]:
    columns = VALUES[name] if name == "table" else {"input": VALUES[name]}
    found = []
    for column, values in columns.items():
        text = name != "table" or column == "color"
        array = np.array([one or "" for one in values], np.object_) if text else np.array(values, np.float32)
        tensor = InferInput(column, list(array.shape), "BYTES" if text else "FP32")
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


@pytest.mark.parametrize("name", VALUES)
def test_a_stock_client_sends_what_it_has(running: Running, name: str) -> None:
    outputs = ["probabilities", "label", "rejected", "member_probs"]
    with InferenceServerClient(f"127.0.0.1:{running.port}") as client:
        assert client.get_model_metadata(name) == describe(running.specs[name]).metadata()
        found = client.infer(name, tensors(name), outputs=[InferRequestedOutput(one) for one in outputs])
        with pytest.raises(InferenceServerException, match="no input"):
            client.infer(
                name, [InferInput("other", [1], "BYTES").set_data_from_numpy(np.array([b"x"], object))]
            )
    expected = running.expected(name)
    assert expected.probs is not None
    np.testing.assert_allclose(found.as_numpy("probabilities"), expected.probs, atol=1e-5)
    wanted = rejected(running.specs[name].tree, expected)
    assert wanted is not None
    assert 0 < wanted.sum() < len(wanted)
    np.testing.assert_array_equal(found.as_numpy("rejected"), wanted)
    assert found.as_numpy("member_probs").shape == (len(wanted), 2, 2)


@pytest.mark.parametrize("name", VALUES)
def test_a_run_compares_encoded_rows(running: Running, name: str) -> None:
    """As every run does with what it serves."""
    spec = running.specs[name]
    assert spec.signature.encoding is not None
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    rows = encode(spec.signature.encoding, VALUES[name])
    found = np.stack([_infer(connection, spec, rows[at : at + 1]) for at in range(len(rows))])
    connection.close()
    expected = running.expected(name).probs
    assert expected is not None
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_predict_answers_the_same(running: Running) -> None:
    with Client(f"http://127.0.0.1:{running.port}") as client:
        for name, rows in (("text", TEXTS), ("audio", SOUNDS), ("table", ROWS)):
            expected = running.expected(name)
            found = client.predict(rows, name).rows
            assert expected.probs is not None
            np.testing.assert_allclose([row["probabilities"] for row in found], expected.probs, atol=1e-5)
            wanted = rejected(running.specs[name].tree, expected)
            assert wanted is not None
            assert [row["rejected"] for row in found] == wanted.tolist()
        with pytest.raises(InputError, match="no PCM WAV file"):
            client.predict_audio(b"RIFF", "audio")
    text = httpx.get(f"http://127.0.0.1:{running.port}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("orchestrator_rejected_rows_total{")]
    assert len(lines) == len(VALUES)
