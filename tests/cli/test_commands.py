"""What every command promises: one JSON document or words for people, and honest exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from edgemp import __version__
from edgemp.cli.main import COMMANDS
from edgemp.cli.output import print_json
from edgemp.cli.run import _plain
from tests import networks
from tests.bundle.hostile import replace_member
from tests.conftest import Cli, Given

Ran = subprocess.CompletedProcess[str]


def document(ran: Ran, code: int = 0) -> Any:
    """The one JSON document on stdout."""
    assert ran.returncode == code, ran.stderr
    return json.loads(ran.stdout)


def said(ran: Ran, code: int = 0) -> str:
    """What was told to people; nothing of it may be on stdout."""
    assert ran.returncode == code, ran.stderr
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    return ran.stderr


@pytest.fixture
def compiled(cli: Cli, conv: Given, tmp_path: Path) -> Ran:
    """`edgemp compile --json` of the conv network in fp32 to `m.edgemp`."""
    return cli(
        *("compile", conv.model, "-o", "m.edgemp", "--samples", conv.samples),
        *("--backend", "onnxruntime", "--precision", "fp32", "--json"),
    )


def test_help_lists_every_command(cli: Cli) -> None:
    ran = cli("--help")
    assert ran.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in ran.stdout
        described = cli(command, "--help")
        assert described.returncode == 0
        assert "Usage" in described.stdout


def test_version_is_printed(cli: Cli) -> None:
    assert cli("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    "arguments", [["fly"], ["compile"], ["compile", "a.onnx"], ["run", "a.edgemp", "--steps", "0"]]
)
def test_a_wrong_call_is_exit_code_2_with_usage(cli: Cli, arguments: list[str]) -> None:
    ran = cli(*arguments)
    assert ran.returncode == 2
    assert "Usage" in ran.stderr
    assert ran.stdout == ""
    error = document(cli(*arguments, "--json"), 2)["error"]
    assert error["kind"] == "UsageError"
    assert error["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "absent.edgemp"],
        ["bench", "absent.edgemp"],
        ["verify", "absent.edgemp"],
        ["inspect", "absent.edgemp"],
        ["sign", "absent.edgemp", "--key", "absent.pem"],
        ["compile", "absent.onnx", "-o", "m.edgemp"],
        ["compile", "absent.yaml", "-o", "m.edgemp"],
        ["targets", "toaster"],
    ],
)
def test_an_error_is_one_json_document_and_exit_code_2(cli: Cli, arguments: list[str]) -> None:
    error = document(cli(*arguments, "--json"), 2)["error"]
    assert error["kind"].endswith("Error")
    assert arguments[1].partition(".")[0] in error["message"]
    assert f"edgemp: {error['message']}" in said(cli(*arguments), 2)


def test_json_has_null_where_json_has_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    odd = np.array([1.0, np.nan, np.inf])
    print_json(
        {
            "value": _plain(odd),
            "nested": [_plain({"a": odd[2]}), (float("-inf"), 2)],
            "wide": _plain(np.array([1j, 2])),
        }
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["value"] == [1.0, None, None]
    assert found["nested"] == [{"a": None}, [None, 2]]
    assert found["wide"] == ["1j", "(2+0j)"]


@pytest.mark.parametrize(
    ("arguments", "stream", "code"),
    [
        (["schema", "manifest"], "stdout", 0),
        (["--help"], "stdout", 0),
        (["--version"], "stdout", 0),
        (["targets", "--json"], "stdout", 0),
        (["targets"], "stderr", 0),
        (["targets", "toaster"], "stderr", 2),
        (["targets", "toaster", "--json"], "stdout", 2),
    ],
)
def test_a_reader_that_leaves_does_not_change_the_exit_code(
    environment: dict[str, str], arguments: list[str], stream: str, code: int
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    other = "stderr" if stream == "stdout" else "stdout"
    with os.fdopen(writer, "wb") as closed:
        ran = subprocess.run(
            [sys.executable, "-m", "edgemp.cli.main", *arguments],
            env=environment,
            timeout=300,
            check=False,
            **{stream: closed, other: subprocess.PIPE},
        )
    seen = ran.stderr if stream == "stdout" else ran.stdout
    assert ran.returncode == code, seen
    assert b"Traceback" not in seen
    assert b"Broken" not in seen


@pytest.mark.parametrize(
    "arguments", [["targets", "--json"], ["targets", "toaster", "--json"], ["schema"], ["--help"]]
)
def test_a_full_disk_behind_stdout_is_said_and_is_exit_code_2(
    environment: dict[str, str], arguments: list[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "edgemp.cli.main", *arguments],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert "cannot write the output: No space left on device" in ran.stderr or (
        "unknown target" in ran.stderr
    )


def test_an_app_dir_that_does_not_exist_is_said(cli: Cli) -> None:
    error = document(cli("--app-dir", "no/such", "targets", "--json"), 2)["error"]
    assert "there is no folder no/such" in error["message"]


def test_a_file_in_the_current_folder_does_not_take_a_packages_place(
    environment: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('a stray numpy.py was imported')")
    (tmp_path / "bin").mkdir()  # as installed: with `python -m`, Python puts the folder first
    script = tmp_path / "bin" / "edgemp_script.py"
    script.write_text("from edgemp.cli.main import main\nmain()\n")
    ran = subprocess.run(
        [sys.executable, str(script), "inspect", str(bundle), "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert document(ran)["signature"] == "unsigned"


# compile


def test_compile_prints_what_it_chose(compiled: Ran, tmp_path: Path) -> None:
    found = document(compiled)
    assert (tmp_path / found["bundle"]).is_file()
    assert found["target"] == "host"
    module = found["modules"]["network"]
    assert module["chosen"]["backend"] == "onnxruntime"
    assert module["chosen"]["precision"] == "fp32"
    assert module["latency_ms"]["p99"] >= module["latency_ms"]["p50"] > 0
    assert module["fidelity"]["cosine_min"] > 0.9999
    assert compiled.stderr == ""


def test_compile_tells_people_what_it_did(cli: Cli, conv: Given, compiled: Ran) -> None:
    text = said(
        cli(
            *("compile", conv.model, "-o", "n.edgemp", "--samples", conv.samples),
            *("--backend", "onnxruntime", "--precision", "fp32"),
        )
    )
    assert "onnxruntime fp32" in text
    assert "fastest that holds" in text
    assert "0 computed" in text
    assert " kB in all artifacts" in text
    assert "0.0 MB" not in text


def test_compile_without_samples_says_that_nothing_lossy_is_offered(cli: Cli, conv: Given) -> None:
    text = said(cli("compile", conv.model, "-o", "m.edgemp", "--backend", "onnxruntime"))
    assert "no samples were given" in text
    assert "onnxruntime int8: lossy" in text


def test_compile_exits_with_1_and_writes_nothing_when_nothing_holds(
    cli: Cli, conv: Given, tmp_path: Path, compiled: Ran
) -> None:
    asked = [
        *("compile", conv.model, "-o", "n.edgemp", "--samples", conv.samples),
        *("--backend", "onnxruntime", "--precision", "fp32"),
    ]
    text = said(cli(*asked, "--budget-latency", "1us", "--budget-size", "1MB"), 1)
    assert "in the way stand:" in text
    assert "smallest that holds: onnxruntime fp32" in text
    error = document(cli(*asked, "--budget-size", "10", "--json"), 1)["error"]
    assert error["kind"] == "BudgetError"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.edgemp"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--budget-size", "12 parsecs"],
        ["--budget-latency", "soon"],
        ["--budget-latency", "0"],
        ["--fidelity", "1.5"],
        ["--backend", "tpu9"],
        ["--target", "toaster"],
        ["-o", "no/such/folder/m.edgemp"],
        ["--samples", "absent.npz"],
        ["--jobs", "0"],
    ],
)
def test_compile_refuses_a_wrong_option_with_2(cli: Cli, conv: Given, wrong: list[str]) -> None:
    ran = cli("compile", conv.model, "-o", "m.edgemp", "--samples", conv.samples, *wrong)
    text = said(ran, 2)
    assert wrong[1] in text or "/".join(wrong[1].split("/")[:-1]) in text


def test_compile_reads_a_pipeline_and_the_users_own_code(
    cli: Cli, conv: Given, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "steps.py").write_text(
        "import numpy as np\n"
        "def best(scores): return {'index': int(scores.argmax())}\n"
        f"def samples(): return ({{'x': one[None]}} for one in np.load({str(conv.samples)!r})['x'])\n"
    )
    (tmp_path / "p.yaml").write_text(
        "name: p\n"
        "signals: {x: {dtype: float32, shape: [1, 3, 16, 16]}}\n"
        f"modules: {{net: {{network: '{conv.model}', inputs: {{x: x}}}}}}\n"
        "functions: {best: {function: 'steps:best', inputs: {scores: net}, outputs: [index]}}\n"
        "results: {index: best.index}\n"
        "samples: steps:samples\n"
    )
    asked = ["compile", "p.yaml", "-o", "p.edgemp", "--backend", "onnxruntime"]
    asked += ["--precision", "fp32", "--json"]
    error = document(cli(*asked), 2)["error"]
    assert error["kind"] == "FunctionMissingError"
    assert "--app-dir" in error["message"]
    document(cli("--app-dir", "code", *asked))
    ran = document(cli("--app-dir", "code", "run", "p.edgemp", "--json"))
    (expected,) = networks.reference(
        onnx.load(conv.model), [{"x": np.load(conv.samples)["x"][_first_held_out()][None]}]
    )
    assert ran["steps"][0]["results"]["index"]["value"] == int(expected["y"].argmax())
    error = document(cli("run", "p.edgemp", "--json"), 2)["error"]
    assert error["kind"] == "FunctionMissingError"


def _first_held_out() -> int:
    from edgemp.samples import split

    return split(9, 0).held_out[0]


# What is done with a bundle


def test_run_executes_the_bundles_own_steps_and_given_samples(
    cli: Cli, bundle: Path, conv: Given
) -> None:
    own = document(cli("run", bundle, "--json"))
    assert own["faults"] == {}
    assert {step["results"]["y"]["source"] for step in own["steps"]} == {"fresh"}
    given = document(
        cli("run", bundle, "--samples", conv.samples, "--steps", "3", "--fps", "10", "--json")
    )
    assert [round(step["t"], 6) for step in given["steps"]] == [0.0, 0.1, 0.2]
    x = np.load(conv.samples)["x"]
    expected = networks.reference(onnx.load(conv.model), [{"x": one[None]} for one in x[:3]])
    for step, outputs in zip(given["steps"], expected, strict=True):
        np.testing.assert_allclose(
            step["results"]["y"]["value"], outputs["y"], rtol=1e-4, atol=1e-5
        )
    assert "y=" in said(cli("run", bundle))


def test_verify_holds_on_the_machine_that_compiled(cli: Cli, bundle: Path) -> None:
    verdict = document(cli("verify", bundle, "--json"))
    assert verdict["holds"] is True
    assert verdict["modules"]["network"]["cosine_min"] > 0.9999
    assert "holds" in said(cli("verify", bundle))


def test_inspect_shows_what_was_chosen_and_tried(cli: Cli, bundle: Path) -> None:
    found = document(cli("inspect", bundle, "--placement", "--trials", "--json"))
    assert found["modules"]["network"]["precision"] == "fp32"
    assert found["signature"] == "unsigned"
    assert {node["unit"] for node in found["placement"]["network"]} == {"CPU"}
    assert any(trial["holds"] for trial in found["trials"]["network"])
    text = said(cli("inspect", bundle, "--trials"))
    assert "onnxruntime fp32" in text


def test_brackets_and_colons_in_a_path_are_shown_as_they_are(
    cli: Cli, bundle: Path, tmp_path: Path
) -> None:
    for folder in ("d[", "[red]d", ":smile:"):
        odd = Path(folder) / "q].edgemp"
        (tmp_path / odd).parent.mkdir()
        (tmp_path / odd).write_bytes(bundle.read_bytes())
        for command in ("verify", "inspect"):
            assert str(odd) in said(cli(command, odd, COLUMNS="200"))


@pytest.mark.parametrize(
    "report", [b"{}", b"not JSON", b'{"modules": {"network": {"trials": [1, {"holds": 2}]}}}']
)
def test_inspect_survives_any_report_in_the_bundle(
    cli: Cli, bundle: Path, tmp_path: Path, report: bytes
) -> None:
    path = tmp_path / "odd.edgemp"
    path.write_bytes(bundle.read_bytes())
    replace_member(path, "report.json", report)
    for more in ([], ["--trials"]):
        said(cli("inspect", path, *more))
        found = document(cli("inspect", path, "--json", *more))
        assert not any(trial["holds"] for trial in found.get("trials", {}).get("network", []))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["--report", "no/such/page.html"], "there is no folder no/such"),
        (["--report", "."], "it is a folder"),
        (["--report", "m.edgemp"], "m.edgemp: it is the bundle of this very call"),
        (
            ["--report", "notes.md"],
            "notes.md: there is a file of that name which is not an HTML page",
        ),
        (["--baseline", "absent.edgemp"], "absent.edgemp"),
        (["--key", "absent.pem"], "is not signed"),
    ],
)
def test_bench_measures_nothing_before_it_knows_that_the_rest_will_work(
    cli: Cli, bundle: Path, tmp_path: Path, wrong: list[str], text: str
) -> None:
    whole = bundle.read_bytes()
    (tmp_path / "m.edgemp").write_bytes(whole)
    (tmp_path / "notes.md").write_text("my notes")
    told = said(cli("bench", "m.edgemp", *wrong), 2)
    assert text in told
    assert "steps" not in told
    assert (tmp_path / "m.edgemp").read_bytes() == whole
    assert (tmp_path / "notes.md").read_text() == "my notes"


@pytest.mark.parametrize("name", ["m.edgemp", "s.npz", "notes.md"])
def test_run_writes_its_video_over_nothing_else(
    cli: Cli, bundle: Path, conv: Given, tmp_path: Path, name: str
) -> None:
    (tmp_path / "m.edgemp").write_bytes(bundle.read_bytes())
    (tmp_path / "s.npz").write_bytes(conv.samples.read_bytes())
    (tmp_path / "notes.md").write_text("my notes")
    before = (tmp_path / name).read_bytes()
    assert f"cannot write {name}" in said(
        cli("run", "m.edgemp", "--samples", "s.npz", "-o", name), 2
    )
    assert (tmp_path / name).read_bytes() == before


def test_bench_with_a_key_runs_a_bundle_that_is_signed_by_it(
    cli: Cli, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.edgemp").write_bytes(bundle.read_bytes())
    document(cli("sign", "mine.edgemp", "--generate", "k", "--json"))
    asked = ["--steps", "5", "--cold-starts", "0", "--report", "page.html", "--json"]
    ran = document(cli("bench", "mine.edgemp", "--key", "k.pub.pem", *asked))
    assert ran["steps"] == 5
    assert (tmp_path / "page.html").is_file()
    error = document(cli("bench", bundle, "--key", "k.pub.pem", *asked), 2)["error"]
    assert error["kind"] == "SignatureError"


def test_bench_reports_percentiles_per_module_and_end_to_end(cli: Cli, bundle: Path) -> None:
    found = document(cli("bench", bundle, "--steps", "40", "--cold-starts", "0", "--json"))
    whole, network = found["end_to_end_ms"], found["nodes"]["network"]
    assert whole["n"] == network["runs"] == 40
    assert 0 < network["when_ran"]["median"] <= whole["median"] <= whole["p90"] <= whole["max"]
    assert network["duty_cycle"] == 1.0
    assert network["engine"]["backend"] == "onnxruntime"


def test_sign_and_verify_with_a_key_and_refuse_another_key(
    cli: Cli, bundle: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "signed.edgemp"
    mine.write_bytes(bundle.read_bytes())
    made = document(cli("sign", "signed.edgemp", "--generate", "mine", "--json"))
    assert Path(tmp_path / made["private_key"]).name == "mine.pem"
    verdict = document(cli("verify", "signed.edgemp", "--key", "mine.pub.pem", "--json"))
    assert verdict["signature"] == "verified"
    document(cli("sign", "--generate", "other", "--json"))
    error = document(cli("verify", "signed.edgemp", "--key", "other.pub.pem", "--json"), 2)
    assert error["error"]["kind"] == "SignatureError"
    error = document(cli("verify", bundle, "--key", "mine.pub.pem", "--json"), 2)
    assert error["error"]["kind"] == "SignatureError"
    said(cli("sign"), 2)


def test_no_keys_are_made_for_a_bundle_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    error = document(cli("sign", "absent.edgemp", "--generate", "k", "--json"), 2)["error"]
    assert error["kind"] == "NotABundleError"
    assert list(tmp_path.iterdir()) == []


# The rest


def test_targets_lists_the_devices(cli: Cli) -> None:
    found = document(cli("targets", "--json"))
    assert found["host"]["backends"]
    assert set(document(cli("targets", "host", "--json"))) == {"host"}
    assert "host" in said(cli("targets"))


def test_doctor_says_what_works_and_what_does_not(cli: Cli) -> None:
    found = document(cli("doctor", "--json"))
    assert found["backends"]["onnxruntime"]["available"] is True
    assert found["backends"]["absent"]["problem"] == "no toolchain; pip install absent-toolchain"
    assert "DoesNotExist" in found["backends"]["broken-import"]["problem"]
    assert "ends the program" in found["backends"]["quitting"]["problem"]
    assert found["can_compile"] is True
    text = said(cli("doctor"))
    assert "no toolchain" in text
    assert "compile side: complete" in text


@pytest.mark.parametrize("which", ["pipeline", "manifest", "target"])
def test_schema_prints_a_valid_json_schema(cli: Cli, which: str) -> None:
    schema = document(cli("schema", which))
    assert schema["$schema"].endswith("2020-12/schema")
    jsonschema.Draft202012Validator.check_schema(schema)
    assert document(cli("schema", which, "--json")) == schema


def test_cache_info_and_clear(cli: Cli, tmp_path: Path) -> None:
    own = tmp_path / "cache"
    assert document(cli("cache", "info", "--cache", own, "--json"))["stages"] == {}
    entry = own / "prepare" / ("0" * 64)
    entry.mkdir(parents=True)
    (entry / "done.json").write_bytes(bytes(100))
    found = document(cli("cache", "info", "--cache", own, "--json"))
    assert found["stages"] == {"prepare": {"entries": 1, "bytes": 100}}
    assert "prepare" in said(cli("cache", "info", "--cache", own))
    assert document(cli("cache", "clear", "--json", EDGEMP_CACHE=str(own)))["freed_bytes"] == 100
    assert not entry.exists()
