"""The pages say what is so: their commands and snippets run, their options exist, their tables agree with the code."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from engine.command import load_config
from engine.config import Config
from engine.resume import EXACT, WARNED
from kernels.jpeg import JpegLibraryError, load_library
from loaders.augment import PRESETS
from loaders.known import KNOWN_SETS
from tests.folders import image_folder

ROOT = Path(__file__).resolve().parents[1]
README, GUIDE, ARCHITECTURE = "README.md", "docs/guide.md", "docs/architecture.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

SIZES = ("32", "40", "48")
QUICK = {
    "--limit-train": "32", "--limit-val": "12", "--batch-size": "16", "--num-workers": "0", "--threads": "1",
    "--model": "resnet10t", "--device": "cpu",
}  # fmt: skip


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block of code; an illustration needs packages that are not here, and is not run."""

    page: str
    line: int
    language: str
    code: str
    illustration: bool


def blocks(page: str) -> Iterator[Block]:
    text = read(page)
    for match in re.finditer(r"^(<!-- illustration -->\n)?```(bash|python)\n(.*?)^```$", text, re.M | re.S):
        yield Block(page, text[: match.start()].count("\n") + 1, match[2], match[3], bool(match[1]))


class Shell:
    """Runs the lines of a page as a reader's shell would: in this process where it can, and on little data."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        self.variables: dict[str, str] = {}
        photos = image_folder(home / "photos", train=36, val=12)
        rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.rglob("*.jpg"))]
        (home / "table.csv").write_text("\n".join(["file,species", *rows]))
        monkeypatch.chdir(home)
        monkeypatch.setenv("HOME", str(home))
        # Without a network, the client of Hugging Face's hub tries for a minute.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(self, line: str) -> None:
        if assignment := re.fullmatch(r"([A-Z]+)=(\$\(.*\)) *(#.*)?", line):
            value = subprocess.run(["bash", "-c", f"echo {assignment[2]}"], check=True, capture_output=True, text=True)
            self.variables[assignment[1]] = value.stdout.strip()
            return
        words = [self._expand(word) for word in shlex.split(line, comments=True)]
        if words[:2] == [".", ".venv/bin/activate"]:
            return
        if words[0] == "make":
            assert f"\n{words[1]}:" in read("Makefile"), f"there is no target {words[1]}"
        elif words[0] == "torchrun":
            script = words.index("engine.train") + 1
            self._torchrun([*words[1:script], *shortened(words[script:])])
        else:
            assert re.fullmatch(r"(\.venv-simd/bin/)?python", words[0]), line
            assert words[1] == "-m", line
            self._python(words[2], words[3:])

    def _expand(self, word: str) -> str:
        return os.path.expanduser(re.sub(r"\$([A-Z]+)", lambda match: self.variables[match[1]], word))

    def _torchrun(self, words: list[str]) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    def _python(self, module: str, arguments: list[str]) -> None:
        if module == "engine.train" and "--help" not in arguments:
            load_config(arguments)  # as written
            if arguments and arguments[0] in KNOWN_SETS:
                return
            arguments = shortened(arguments)
        if module == "engine.doctor":
            arguments = [*arguments, "--seconds", "2", "--resolutions", SIZES[0], "--model", "off"]
        self.monkeypatch.setattr(sys, "argv", [module, *arguments])
        try:
            code = importlib.import_module(module).main() or 0
        except SystemExit as end:
            code = end.code or 0
        output = self.capsys.readouterr()
        if "--pretrained" in arguments and code == 2:
            assert re.search(r"error: --pretrained: .*https://\S+ and give the file with --weights", output.err)
        else:
            assert code == 0, output.err


def shortened(arguments: list[str]) -> list[str]:
    """Return a command that does the same to few small images, in a tenth of the epochs."""
    given: dict[str, str] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in (*QUICK, "--epochs", "--resolutions"):
            given[word] = next(words)
        else:
            rest.append(word)
    epochs = -(-int(given["--epochs"]) // 10) if "--epochs" in given else 1
    if "--resume" in rest and rest[rest.index("--resume") + 1] != "auto":  # all else is that run's
        return [*rest, "--epochs", str(epochs)]
    count = given.get("--resolutions", "a,b").count(",") + 1
    quick = [word for option in QUICK.items() for word in option]
    return [*rest, *quick, "--epochs", str(epochs), "--resolutions", ",".join(SIZES[-count:])]


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, GUIDE])
def test_commands_and_snippets_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--loader dali" in read(page):
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    if "--loader roi" in read(page):
        try:
            load_library()
        except JpegLibraryError as error:
            pytest.skip(str(error))
    shell = Shell(tmp_path, monkeypatch, capsys)
    for block in blocks(page):
        if block.illustration:
            ast.parse(block.code)
        elif block.language == "python":
            if name := re.match(r"# (\w+\.py)\n", block.code):  # the text of a file that later commands name
                (tmp_path / name[1]).write_text(block.code)
            exec(compile(block.code, f"{page}:{block.line}", "exec"), {"__name__": "__main__"})
        else:
            for line in block.code.splitlines():
                shell.run(line)
    if page == README:
        newest = sorted(tmp_path.glob("runs/*/"))[-1]
        names = re.findall(r"`([\w.]+\.\w+)`", "".join(re.findall(r"^\| (`.*?) \|", read(page), re.M)))
        missing = [name for name in names if not (newest / name).exists() and name != "bad_samples.csv"]
        assert len(names) > 10
        assert not missing


def test_every_option_named_exists(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    known = {"--nproc-per-node", "--shm-size", "--ipc"}  # of torchrun and docker
    for module in (
        "engine.train",
        "engine.doctor",
        "engine.evaluate",
        "engine.predict",
        "engine.export",
        "loaders.pack",
    ):
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit):
            importlib.import_module(module).main()
        known |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for page in (README, GUIDE, ARCHITECTURE):
        assert not set(re.findall(r"(?<![\w-])--[a-z][\w-]*", read(page))) - known, page


def resume_table() -> str:
    """Return what the guide says about options that change on resume."""

    def flag(name: str) -> str:
        field = name.partition(".")[2]
        return "DATA" if name == "data.data" else f"`--{field.replace('_', '-')}`"

    names = [
        f"{group.name}.{field.name}" for group in fields(Config) for field in fields(getattr(Config(), group.name))
    ]
    exact = " ".join(flag(name) for name in names if name in EXACT)
    refused = " ".join(flag(name) for name in names if name not in EXACT and name not in WARNED)
    rows = [
        ("Option", "What a change does"),
        ("---", "---"),
        (exact, "nothing: every later batch and weight is as it would have been"),
        *((flag(name), f"allowed with a warning: {WARNED[name]}") for name in names if name in WARNED),
        (refused, "refused"),
    ]
    return "\n".join(f"| {option} | {effect} |" for option, effect in rows)


def test_the_guide_says_what_may_change_on_resume() -> None:
    table = resume_table()
    assert table in read(GUIDE), f"the guide needs this table:\n\n{table}\n"


def test_the_guide_knows_the_presets_and_the_known_sets() -> None:
    heading = next(line for line in read(GUIDE).splitlines() if line.startswith("| | `none`"))
    assert re.findall(r"`(\w+)`", heading) == list(PRESETS)
    crops = next(line for line in read(GUIDE).splitlines() if line.startswith("| crop, area"))
    lows = [float(low) for low in re.findall(r"random, ([\d.]+) to 1", crops)]
    assert lows == [preset.scale[0] for preset in PRESETS.values() if preset.crop == "random-resized"]
    assert all(f"`{name}`" in read(GUIDE) for name in KNOWN_SETS)


def test_the_architecture_names_every_module_and_dependency() -> None:
    text = read(ARCHITECTURE)
    packages = PROJECT["tool"]["setuptools"]["packages"]
    modules = [path for package in packages for path in sorted((ROOT / package).glob("*.py"))]
    missing = [
        f"{path.parent.name}/{path.name}"
        for path in modules
        if path.name != "__init__.py" and not re.search(rf"`{path.stem}`", _section(text, f"### {path.parent.name}/"))
    ]
    assert not missing
    listed = _section(text, "## Dependencies")
    dependencies = [re.split(r"[<>=]", line)[0] for line in PROJECT["project"]["dependencies"]]
    assert not [name for name in dependencies if f"`{name}`" not in listed]


def _section(text: str, heading: str) -> str:
    """Return what stands between a heading and the next."""
    return text.partition(f"\n{heading}")[2].partition("\n#")[0]


@pytest.mark.parametrize("page", [README, GUIDE, ARCHITECTURE])
def test_links_lead_somewhere(page: str) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", read(page)):
        target = (ROOT / page).parent / link
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor
