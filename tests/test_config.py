"""The configuration: command line, TOML file, help and refusals."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.command import fail, load_config
from engine.config import Config, ConfigError
from engine.toml import from_toml
from engine.validation import check_shares, validate
from engine.values import parse_duration, parse_target

GROUPS = [field.name for field in fields(Config)]
FIELDS = [(group, field.name) for group in GROUPS for field in fields(getattr(Config(), group))]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("RANK", raising=False)


def parse(arguments: str) -> Config:
    return load_config(arguments.split())


def refusal(arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    return str(caught.value)


def test_no_arguments_give_the_defaults() -> None:
    assert load_config([]) == Config()


def test_every_value_form_reads_naturally() -> None:
    config = parse(
        "photos --csv list.csv --resolutions 128,160,192 --batch-sizes 128,96,64 --val-resolution 224 --num-workers 3 "
        "--scale 0.35,1.0 --rand-augment 2,9 --trivial-augment off --hflip 0 --lr 0.1 --no-channels-last --compile"
    )
    assert config.data.data == "photos"
    assert config.data.csv == Path("list.csv")
    assert config.resolution.resolutions == (128, 160, 192)
    assert config.resolution.batch_sizes == (128, 96, 64)
    assert config.resolution.val_resolution == 224
    assert config.loader.num_workers == 3
    assert config.augment.scale == (0.35, 1.0)
    assert config.augment.rand_augment == (2, 9)
    assert config.augment.trivial_augment is False
    assert config.augment.hflip == 0.0
    assert config.optimizer.lr == 0.1
    assert config.model.compile and not config.model.channels_last


def test_words_stand_in_for_numbers() -> None:
    config = parse("--batch-sizes auto --num-workers auto --lr auto")
    assert (config.resolution.batch_sizes, config.loader.num_workers, config.optimizer.lr) == ("auto", "auto", "auto")


@pytest.mark.parametrize(
    ("alias", "flag"),
    [
        ("--workers 4", "--num-workers 4"),
        ("-j 4", "--num-workers 4"),
        ("-b 32", "--batch-size 32"),
        ("--torchcompile", "--compile"),
        ("--no-torchcompile", "--no-compile"),
        ("--initial-checkpoint a.pt", "--weights a.pt"),
        ("--reprob 0.2", "--erasing 0.2"),
        ("--label-smoothing 0.2", "--smoothing 0.2"),
        ("--sched cosine", "--schedule cosine"),
        ("--crop-pct 0.9", "--crop-fraction 0.9"),
        ("--drop 0.2", "--dropout 0.2"),
        ("--wd 0.01", "--weight-decay 0.01"),
        ("--model-ema", "--ema"),
    ],
)
def test_aliases(alias: str, flag: str) -> None:
    assert parse(alias) == parse(flag)


def test_flags_are_flat_so_field_names_are_unique() -> None:
    names = [name for _, name in FIELDS]
    assert len(names) == len(set(names))
    assert "config" not in names, "--config is the file"


def test_help_is_complete_and_fits_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for group in GROUPS:
        assert f" {group} options " in text
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())
    for group, name in FIELDS:
        flag = "DATA" if name == "data" else "--" + name.replace("_", "-")
        after_flag = re.search(rf"(?<![\w-]){flag}(?![\w-])(.*?)\(default: ", words)
        assert after_flag, f"{group}.{name} has no help"
        assert len(after_flag[1].split()) > 2 or name == "augment", f"{group}.{name} has hardly any help"


def test_an_unknown_flag_is_refused_with_the_closest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--resolution 128")
    assert stop.value.code == 2
    assert "--resolutions" in capsys.readouterr().err


@pytest.mark.parametrize("argv", ["--resolutions 128,x", "--scale 0.3", "--epochs ten", "--trivial-augment perhaps"])
def test_a_malformed_value_is_refused(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    assert stop.value.code == 2
    assert argv.split()[0] in capsys.readouterr().err


def test_one_process_of_several_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        parse("--resolution 128")
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------------------------------------- TOML


def test_precedence_is_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[optimizer]\nepochs = 7\nlr = 1\n[data]\ndata = "photos"\n[resolution]\nresolutions = [64, 96]\n')
    for option in (f"--config {file}", f"--config={file}"):
        config = parse(f"{option} --epochs 9")
        assert (config.data.data, config.optimizer.epochs, config.optimizer.lr) == ("photos", 9, 1.0)
        assert isinstance(config.optimizer.lr, float)
        assert config.resolution.resolutions == (64, 96)
        assert config.optimizer.momentum == 0.9


def test_a_preset_on_the_command_line_drops_the_augmentation_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[augment]\naugment = "light"\nmixup = 0.0\nhflip = 0.5\n')
    assert parse(f"--config {file}").augment.mixup == 0.0
    augment = parse(f"--config {file} --augment strong --hflip 0").augment
    assert (augment.augment, augment.mixup, augment.hflip) == ("strong", None, 0.0)


def test_a_written_configuration_can_be_passed_back(tmp_path: Path) -> None:
    config = parse("a/b --resolutions 64,96 --batch-sizes auto --csv x.csv --scale 0.5,1 --target top1=93")
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    assert parse(f"--config {file}") == config


def _values(annotation: Any) -> st.SearchStrategy[Any]:
    """Anything that fits a type, sensible or not."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return st.one_of(*map(_values, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(_values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(_values, arguments))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    by_type: dict[type, st.SearchStrategy[Any]] = {
        NoneType: st.none(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False),
        str: text,
        Path: text.map(Path),
    }
    return by_type[annotation]


def _configs() -> st.SearchStrategy[Config]:
    groups = {}
    for group in GROUPS:
        kind = type(getattr(Config(), group))
        groups[group] = st.builds(kind, **{name: _values(hint) for name, hint in get_type_hints(kind).items()})
    return st.builds(Config, **groups)


@settings(max_examples=60, deadline=None)
@given(config=_configs())
def test_toml_round_trip_is_exact(config: Config) -> None:
    assert from_toml(config.to_toml(), Config(), "config.toml") == config


def test_a_field_that_may_be_none_is_none_by_default() -> None:
    for group in GROUPS:
        values = getattr(Config(), group)
        for name, hint in get_type_hints(type(values)).items():
            assert (NoneType in get_args(hint)) == (getattr(values, name) is None), f"{group}.{name}"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("[optimizer]\nepoch = 3", "unknown key optimizer.epoch; the closest valid one is optimizer.epochs"),
        ("epochs = 3", "unknown key epochs; the closest valid one is optimizer.epochs"),
        ("[run]\nbatch-size = 3", "unknown key run.batch-size; the closest valid one is optimizer.batch_size"),
        ("[optimiser]\nepochs = 3", "unknown table [optimiser]; the closest valid one is [optimizer]"),
        ('data = "photos"', "data is a table; write [data]"),
        ("[optimizer]\nepochs = 3.5", "optimizer.epochs = 3.5 does not fit: expected a whole number"),
        ("[optimizer]\nepochs = true", "optimizer.epochs = true does not fit: expected a whole number"),
        ("[run]\ndeterministic = 1", "run.deterministic = 1 does not fit: expected true or false"),
        ('[optimizer]\nlr = "fast"', 'optimizer.lr = "fast" does not fit: expected a number or "auto"'),
        ("[augment]\nscale = [0.5]", "augment.scale = [0.5] does not fit: expected a list of 2, each a number"),
        ('[resolution]\nresolutions = "128"', "expected a list, each a whole number"),
        ('[model]\namp = "bf61"', '"auto" or "bf16" or "fp16" or "off"'),
        ("[optimizer", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_key_and_fix(text: str, fix: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    message = refusal(f"--config {file}")
    assert str(file) in message
    assert fix in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(f"--config {tmp_path}/none.toml")


# ------------------------------------------------------------------------------------------- impossible combinations


@pytest.mark.parametrize(
    ("argv", "fix"),
    [
        ("--resolutions 32,64,96,128,160,192,224", "at most 6"),
        ("--resolutions 32,64,96,128,160,192,224", "32,64,96,160,192,224 would do"),
        ("--resolutions 128,96,96", "write 96,128"),
        ("--resolutions 4,96", "--resolutions must be at least 8, got 4"),
        ("--val-resolution 5", "--val-resolution must be 0"),
        ("--final-resolutions 5", "--final-resolutions must be at least 8"),
        ("--resolutions 64,96 --batch-sizes 64", "one for each"),
        ("--resolutions 64,96 --batch-sizes 64,0", "--batch-sizes must be at least 1, got 0"),
        ("--resolutions 64,96 --stage-starts 0.5", "2 numbers beginning with 0"),
        ("--resolutions 64,96 --stage-starts 0.2,0.5", "for example 0,0.5"),
        ("--resolutions 64,96 --stage-starts 0,1", "--stage-starts must be at least 0 and below 1"),
        ("--resolutions 64,96,128 --stage-starts 0,0.5,0.4", "--stage-starts must rise"),
        ("--resolutions 64,96 --latest-starts 0,0.4", "--resolution-schedule metric"),
        ("--resolutions 64,96 --resolution-schedule linear --stage-starts 0,0.4", "--resolution-schedule stages"),
        ("--stage-starts 0,0.4", "needs --resolutions"),
        ("--resolutions 64 --resolution-schedule metric", "--resolutions two or more"),
        ("--pretrained --weights a.pt", "choose one"),
        ("--sync-bn --device cpu", "SyncBN exists on CUDA only"),
        ("--val-fraction 0", "--val-fraction must be above 0 and below 1"),
        ("--val-fraction 1", "--val-fraction must be above 0 and below 1"),
        ("--grad-accum-steps 65", "at most 64"),
        ("--resolutions 64,96 --batch-sizes 64,4 --grad-accum-steps 8", "at most 4"),
        ("--class-weights inverse --balanced-sampling", "choose one"),
        ("--epochs 0", "--epochs must be at least 1"),
        ("--epochs 3 --warmup-epochs 3", "below 3"),
        ("--lr 0", "--lr must be above 0"),
        ("--lr nan", "--lr must be above 0"),
        ("--clip-grad inf", "--clip-grad must be at least 0"),
        ("--weight-decay -1", "--weight-decay must be at least 0"),
        ("--num-workers -1", "--num-workers must be at least 0"),
        ("--mixup -0.2", "--mixup must be at least 0"),
        ("--scale 0.9,0.5", "write 0.5,0.9"),
        ("--scale 0.5,0.9 --crop padded", "--crop random-resized"),
        ("--rand-augment 2,9 --trivial-augment on", "choose one"),
        ("--image-root photos", "--csv"),
        ("--resume auto --plan", "leave out --resume"),
        ("--device gpu", "cuda:N"),
        ("--name a/b", "--output"),
        ("--save-every 10", "--save-every"),
        ("--time-limit soon", "10min"),
        ("--target 93", "top1=93"),
        ("--seed -1", "--seed must be at least 0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(argv: str, fix: str) -> None:
    assert fix in refusal(argv)


@pytest.mark.parametrize(
    "argv",
    [
        "--resolutions 64,96 --stage-starts 0,0.4",
        "--resolutions 64,96,128 --resolution-schedule metric --latest-starts 0,0.4,0.8",
        "--csv list.csv",
        "--pretrained --resume auto",
        "--rand-augment 0,0 --trivial-augment on",
        "--grad-accum-steps 64",
        "--epochs 1",
    ],
)
def test_what_can_work_is_not_refused(argv: str) -> None:
    parse(argv)


def test_sync_bn_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(Config(), model=replace(Config().model, sync_bn=True))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="SyncBN exists on CUDA only"):
        validate(config)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    validate(config)


def sync_bn_config(*, batch_size: int = 64, drop_last: bool = False, sync_bn: bool = True) -> Config:
    usual = Config()
    return replace(
        usual,
        model=replace(usual.model, sync_bn=sync_bn),
        loader=replace(usual.loader, drop_last=drop_last),
        optimizer=replace(usual.optimizer, batch_size=batch_size),
        resolution=replace(usual.resolution, resolutions=(32, 48)),
    )


@pytest.mark.parametrize("last", [1, 3])
def test_sync_bn_with_a_process_without_images_in_the_last_batch(last: int) -> None:
    with pytest.raises(ConfigError, match=f"leave {last} for the last: add --drop-last"):
        check_shares(sync_bn_config(), 10 * 64 + last, world=4)
    check_shares(sync_bn_config(drop_last=True), 10 * 64 + last, world=4)
    check_shares(sync_bn_config(sync_bn=False), 10 * 64 + last, world=4)
    check_shares(sync_bn_config(), 10 * 64 + last, world=1)


def test_sync_bn_with_images_for_all_processes() -> None:
    for last in (0, 4, 63):
        check_shares(sync_bn_config(), 10 * 64 + last, world=4)


def test_sync_bn_with_more_processes_than_images_in_a_batch() -> None:
    with pytest.raises(ConfigError, match="raise --batch-size to 4"):
        check_shares(sync_bn_config(batch_size=3, drop_last=True), 300, world=4)


def test_fail_prints_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fail(ConfigError("this\nand that"))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: this and that\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("10 min", 600), ("20m", 1200), ("2h", 7200), ("1h30min", 5400), ("0.5d", 43200)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "min", "-5s", "0s", "5 parsecs", "1h and 5min"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text)


def test_targets() -> None:
    assert parse_target("top1=93") == ("top1", 93.0)
    assert parse_target("top5 = 99.5") == ("top5", 99.5)
    for text in ("", "top1", "93", "top1=0", "top1=101", "accuracy=93"):
        with pytest.raises(ConfigError, match="top1=93"):
            parse_target(text)
