import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from simcse.cli.main import main
from simcse.config.finding import config_names
from simcse.config.reading import (
    differences,
    json_schema,
    load_config,
    to_yaml,
    validate,
)
from simcse.config.settings import Config, DataConfig
from simcse.errors import UserError
from simcse.objectives.terms import resolve


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads_by_path_and_by_name(path):
    config = load_config(str(path))
    assert config.output == f"outputs/{path.stem}"
    assert load_config(path.stem) == config
    assert load_config(f"configs/{path.stem}.yaml") == config
    assert path.stem in config_names()


@pytest.mark.parametrize("name", ["unsup_bert_base", "sup_bert_base"])
def test_the_papers_runs_leave_no_row_and_no_negative_out(name):
    config = load_config(name)
    assert config.data.duplicates == "keep" and not config.objective.mask_identical


def test_resolved_config_reads_back_equal(write):
    config = load_config("quickstart", ["seed=7", "training.learning_rate=3e-5"])
    assert load_config(write(to_yaml(config))) == config


def test_overrides_are_yaml_and_may_have_dashes():
    config = load_config(
        "unsup_wiki_mini",
        ["--training.batch_size=128", "data.train=[a.txt, b.txt]", "encoder.dropout=null"],
    )
    assert config.training.batch_size == 128
    assert config.data.train == ["a.txt", "b.txt"]
    assert config.encoder.dropout is None


@pytest.mark.parametrize(
    "name", ["*.txt", "data/*.txt", "a: b.txt", "run #1.txt", "2026-11-22", "a, b.txt", "- x"]
)
def test_text_of_an_override_is_taken_as_it_stands(name):
    assert load_config("unsup_wiki_mini", [f"data.train={name}"]).data.train == [name]
    assert load_config("quickstart", [f"output={name}"]).output == name


def test_quotes_and_lists_of_an_override_are_yaml():
    config = load_config("unsup_wiki_mini", ["output='null'", "data.train=[a, 'b c']"])
    assert config.output == "null"
    assert config.data.train == ["a", "b c"]
    with pytest.raises(UserError, match=r"argument data\.train: not valid YAML"):
        load_config("quickstart", ["data.train=[a"])


@pytest.mark.parametrize("text", ["3e-5", "'3e-5'", "0.00003", "3.0e-5"])
def test_numbers_that_yaml_takes_for_text(write, text):
    config = load_config(write(f"training: {{learning_rate: {text}}}"))
    assert config.training.learning_rate == pytest.approx(3e-5)


def test_all_mistakes_at_once_with_paths(write):
    path = write("training: {batch_size: many, learning_rte: 1}\ntraning: {}\nseed: -1\n")
    with pytest.raises(UserError) as error:
        load_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "training.batch_size: should be a valid integer, got 'many'" in message
    assert "training.learning_rte: unknown key (did you mean learning_rate?)" in message
    assert "traning: unknown key (did you mean training?)" in message
    assert "seed: should be greater than or equal to 0, got -1" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 1e-4", "did you mean training.learning_rate?"),
        ("training: {batch_size: 1}", "leaves no in-batch negatives"),
        ("training: {batch_size: 64.5}", "training.batch_size"),
        ("training: {learning_rate: 0}", "training.learning_rate: should be greater than 0"),
        ("training: {learning_rate: .inf}", "training.learning_rate: should be a finite number"),
        ("objective: {temperature: -0.1}", "objective.temperature.start: should be greater"),
        ("objective: {temperature: 0}", "objective.temperature.start: should be greater than or"),
        ("objective: {terms: [{info_nce: 0}, {mlm: 0}]}", "objective: terms: the weights sum to 0"),
        ("objective: {guide_margin: 0.1}", "guide_margin has no meaning without guide"),
        (
            "objective: {guide: x, guide_margin: 5}",
            "guide_margin: should be less than or equal to 2",
        ),
        (
            "objective: {terms: {info_nce: -1}}",
            "terms.info_nce.weight: should be greater than or equal",
        ),
        ("objective: {temperature: {schedule: linear}}", "schedule linear needs an end"),
        ("objective: {temperature: {end: 1}}", "end has no meaning with schedule fixed"),
        (
            "objective: {temperature: {schedule: learnable, start: 2}}",
            "start 2.0 is not between minimum 0.01 and maximum 1.0",
        ),
        ("data: {form: pairs, columns: [a]}", "form pairs takes two columns or more"),
        ("data: {form: nli, columns: [a, b]}", "form nli takes three columns"),
        ("encoder: {towers: two}", "encoder.towers: two needs data.form=pairs"),
        ("views: [{}]", "views: list should have at least 2 items"),
        ("views: [{}, {template: no place}]", "template: 'no place' needs {} once"),
        ("{data: {form: labelled}, training: {batch_size: 3}}", "batch_size must be even"),
        ("encoder: {pooling: median}", "'last_token', 'avg_first_last' or 'pooler'"),
        ("encoder: {dropout: 1}", "encoder.dropout"),
        ("data: {train: []}", "data.train"),
        ("evaluation: {tasks: [STS12]}", "evaluation: STS12 needs data=FOLDER"),
        ("evaluation: {dev: STSB}", "evaluation: STSB needs data=FOLDER"),
        ("training: 3", "training: should be a valid dictionary"),
        ("[1, 2]", "expected a mapping of settings, found list"),
        ("training: {batch_size: 3", "mine.yaml:1: not valid YAML"),
        ("a: b: c", "not valid YAML"),
        (
            "seed: 1\ntraining: {}\ntraining: {steps: 3}",
            "yaml:3: not valid YAML: the key 'training' ",
        ),
        ("training: {steps: 3, steps: 4}", "the key 'steps' is given twice"),
        ("training: {steps: 010}", "010 would be another number in YAML"),
        ("training: {batch_size: 1:30}", "1:30 would be another number in YAML"),
        ("data: {form: pairs, columns: [a, a]}", "columns: one is named twice in a, a"),
        ("seed: 2026-13-45", "seed: should be a valid integer, got '2026-13-45'"),
        ("training: {steps: 1" + "0" * 5000 + "}", "cannot be read: Exceeds the limit"),
        ("views: " + "[" * 3000 + "]" * 3000, "not valid YAML: nested too deeply"),
        ("training: &a {steps: *a}", "yaml:1: not valid YAML: aliases such as *a are not allowed"),
        ("a: &a [x, x]\nb: [*a, *a]", "yaml:2: not valid YAML: aliases such as *a are not"),
        ("seed: 0x" + "f" * 5000, "cannot be read: Exceeds the limit"),
        (
            "training: {batch_size: " + "{a: " * 150 + "1" + "}" * 150 + "}",
            "training.batch_size: should be a valid integer, got {'a': {'a': {'a': {'a': {'a': ",
        ),
        ("output: ~nosuchuser/x", "output: '~nosuchuser/x': the home folder is not known"),
        (
            "objective: {temperature: {minimum: 1e-300}}",
            "objective.temperature.minimum: should be greater than or equal to 0.000001",
        ),
        ('hub: {license: "a\nb"}', "hub.license: string should match pattern"),
        ("hub: {language: ['en: x']}", "hub.language.0: string should match pattern"),
        ("output: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine"),
        ("seed: 3\0", "not valid YAML: unacceptable character"),
        ('output: "a\\0b"', "output: 'a\\x00b' has a NUL character"),
        ('output: "\\ud800"', "output: should be a valid string"),
        (
            "training: {steps: 3000000000}",
            "training.steps: should be less than or equal to 2147483647",
        ),
        ("training: {epochs: 1e300}", "training.epochs: should be less than or equal to 1000000"),
        ("training: {warmup: 1}", "training.warmup: should be less than 1"),
        ("training: {log_every: 0}", "training.log_every: should be greater than 0"),
        ("training: {keep_checkpoints: 0}", "training.keep_checkpoints: should be greater than 0"),
        (
            "training: {max_grad_norm: -1}",
            "training.max_grad_norm: should be greater than or equal",
        ),
        ("training: {learning_rate: .nan}", "training.learning_rate: should be a finite number"),
        ("data: {max_length: 2}", "data.max_length: should be greater than or equal to 3"),
        ("data: {max_rows: 0}", "data.max_rows: should be greater than 0"),
        ("evaluation: {every: -5}", "evaluation.every: should be greater than 0"),
        ("seed: 4294967296", "seed: should be less than 4294967296"),
        ('views: [{template: "{} \\uD800"}, {}]', "is not valid Unicode text"),
    ],
)
def test_one_clear_line(write, text, expected):
    with pytest.raises(UserError, match=r"mine\.yaml") as error:
        load_config(write(text))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_not_utf8(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"output: caf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.yaml: not UTF-8 text \(byte 11\)"):
        load_config(str(tmp_path / "latin.yaml"))


def test_missing_config_lists_what_there_is():
    with pytest.raises(
        UserError, match=r"config nosuch\.yaml: no such file; shipped are .*quickstart"
    ):
        load_config("nosuch.yaml")


@pytest.mark.parametrize("argument", ["batch_size", "=3", "training.batch_size.x=3"])
def test_bad_arguments(argument):
    with pytest.raises(UserError):
        load_config("quickstart", ["training.batch_size=4", argument])


@pytest.mark.parametrize("start", ["", "training.batch_size."])
def test_a_key_of_3000_parts_is_one_line(start, capsys):
    assert main(["train", "quickstart", f"{start}{'.'.join(['a'] * 3000)}=1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and len(message) < 1000


def test_a_config_named_in_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "caf\udce9.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(UserError, match="output: should be a valid string"):
        load_config(str(path))
    assert load_config(str(path), ["output=run"]).output == "run"


def test_differences_name_every_changed_key():
    old = Config()
    new = load_config("quickstart", ["seed=1", "training.batch_size=8", "output=x"])
    lines = differences(old, new)
    assert "seed: 42 -> 1" in lines
    assert "training.batch_size: 64 -> 8" in lines
    assert differences(new, new) == []


def test_tasks_may_go_by_other_names():
    words = ["evaluation.data=x", "evaluation.tasks=[STSBenchmark, SICK-R]"]
    assert load_config("quickstart", words).evaluation.tasks == ["STSB", "SICK-R"]


def test_schema_describes_every_section():
    schema = json_schema()
    assert set(schema["properties"]) == {"base", *Config.model_fields}
    json.dumps(schema)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(list(Config.model_fields)) | st.text(max_size=8)


@given(st.dictionaries(_keys, _values, max_size=4))
def test_any_yaml_is_either_valid_or_one_line(values):
    try:
        config = validate(values, where="x.yaml")
    except UserError as error:
        assert str(error).startswith("x.yaml: ")
    else:
        assert validate(yaml.safe_load(to_yaml(config)), where="again") == config


_text = st.text(st.characters(exclude_categories=()), max_size=60)
_pieces = ["steps", ": ", "{", "}", "[", "]", "- ", "&a ", "*a", "1", "~", "!!int ", "'", '"', "\n"]
_pieces += ["\n  ", ", ", "1e999", "2026-02-31", "<<: ", "|", ">", "!!bool ", "!!timestamp "]
_near_yaml = st.lists(st.sampled_from([*_pieces, *Config.model_fields]), max_size=12).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_text | _near_yaml)
def test_any_file_is_a_config_or_one_line(write, text):
    path = write("")
    Path(path).write_bytes(text.encode("utf-8", errors="surrogatepass"))
    try:
        config = load_config(path)
    except UserError as error:
        assert str(error).startswith(path)
        assert "\n" not in str(error)
    else:
        assert load_config(write(to_yaml(config), "again.yaml")) == config


@settings(deadline=None)
@given(st.sampled_from(sorted(Config().settings())) | _text, _text | _near_yaml)
def test_any_argument_is_a_setting_or_one_line(key, text):
    try:
        load_config("quickstart", [f"{key}={text}"])
    except UserError as error:
        assert "\n" not in str(error)


def test_byte_order_mark_and_line_ends_of_windows(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbfseed: 7\r\ntraining:\r\n  steps: 3\r\n")
    config = load_config(str(tmp_path / "mine.yaml"))
    assert (config.seed, config.training.steps) == (7, 3)


def weights(objective):
    return {name: term.weight for name, term in objective.terms.items()}


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("objective: clip", {"clip": 1.0}),
        ("objective: [{info_nce: 1.0}, {mlm: 0.1}]", {"info_nce": 1.0, "mlm": 0.1}),
        ("objective: {terms: [info_nce, {mlm: 0.1}]}", {"info_nce": 1.0, "mlm": 0.1}),
        ("objective: {terms: {nt_xent: 2}}", {"nt_xent": 2.0}),
    ],
)
def test_objective_in_short_and_in_full(write, text, terms):
    objective = resolve(load_config(write(text))).objective
    assert weights(objective) == terms
    learned = "clip" in terms  # CLIP's temperature unless another is given
    assert (objective.temperature.start, objective.temperature.schedule) == (
        (0.07, "learnable") if learned else (0.05, "fixed")
    )


def test_temperature_is_a_number_or_a_section(write):
    path = write("objective: {terms: clip, temperature: 0.1}")
    assert resolve(load_config(path)).objective.temperature.schedule == "fixed"
    words = ["objective.temperature={start: 0.2, schedule: cosine, end: 0.05}"]
    found = load_config(write(""), words).objective.temperature
    assert (found.start, found.end) == (0.2, 0.05)


@pytest.mark.parametrize("short", ["objective: nt_xent", "objective: {temperature: 0.2}"])
@pytest.mark.parametrize(
    ("override", "terms", "start", "schedule"),
    [
        ("objective=[{info_nce: 1}, {mlm: 0.5}]", {"info_nce": 1, "mlm": 0.5}, None, "fixed"),
        ("objective.temperature.schedule=learnable", None, None, "learnable"),
        ("objective.temperature=0.3", None, 0.3, "fixed"),
    ],
)
def test_an_override_changes_one_setting_of_a_short_section(
    write, short, override, terms, start, schedule
):
    objective = load_config(write(short), [override]).objective
    before = {"nt_xent": 1} if "nt_xent" in short else {"info_nce": 1}
    assert weights(objective) == (terms or before)
    assert objective.temperature.start == (start or (0.05 if "nt_xent" in short else 0.2))
    assert objective.temperature.schedule == schedule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("objective: [mlm, info_nce, {mlm: 2}]", "objective.terms: mlm is named twice"),
        ("objective: {temperature: {minimum: 2, maximum: 1}}", "minimum 2.0 is above maximum 1.0"),
    ],
)
def test_objectives_that_cannot_be(write, text, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        load_config(write(text))


def _text_keys(section=Config, prefix=""):
    for name, field in section.model_fields.items():
        annotation = DataConfig if name == "data" and not prefix else field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _text_keys(annotation, f"{prefix}{name}.")
        elif "str" in str(field.annotation):
            yield f"{prefix}{name}"


@pytest.mark.parametrize("bad", ['"a\\0b"', '"a\\uD800"'])
def test_no_setting_takes_text_that_no_file_can_hold(bad):
    keys = list(_text_keys())
    assert {"output", "encoder.revision", "data.columns", "hub.data_license"} <= set(keys)
    for key in keys:
        with pytest.raises(UserError) as error:
            load_config("quickstart", [f"{key}={bad}"])
        assert "\n" not in str(error.value) and key.rpartition(".")[2] in str(error.value)


def test_a_file_of_megabytes_is_no_config(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# x\n" * 300_000)
    with pytest.raises(UserError, match=r"mine\.yaml: more than 1,000,000 bytes; is this a config"):
        load_config(str(path))


def test_a_config_changes_those_that_it_names_as_base(write):
    write(
        "base: quickstart\ntraining: {steps: 7}\nobjective: decoupled\noutput: elsewhere\n",
        "a.yaml",
    )
    write("data: {train: x.txt}\n", "b.yaml")
    path = write("base: [a.yaml, b.yaml]\nevaluation: {dev: pairs, tasks: pairs}\n")
    config, quickstart = load_config(path), load_config("quickstart")
    assert config.output == "outputs/mine"
    assert (config.training.steps, config.data.train) == (7, ["x.txt"])
    assert config.training.learning_rate == quickstart.training.learning_rate
    assert config.objective.temperature == quickstart.objective.temperature
    assert list(config.objective.terms) == ["decoupled"]
    assert config.data.form == "sentences"
    assert load_config(path, ["training.steps=3"]).training.steps == 3
    assert "base" in json_schema()["properties"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: nosuch", "config nosuch: no such file"),
        ("base: mine.yaml", r"mine\.yaml: base: mine.yaml would inherit from itself"),
        ("base: [3]", r"mine\.yaml: base: expected a config's name or path, or several, got \[3\]"),
        ("base: quickstart\ntraining: {stepz: 3}", r"mine\.yaml: training.stepz: unknown key"),
    ],
)
def test_a_base_that_cannot_be_is_one_line(write, text, expected):
    with pytest.raises(UserError, match=expected):
        load_config(write(text))


def test_the_settings_of_a_section_may_be_nested(tmp_path):
    nested = load_config(
        "quickstart",
        {
            "training": {"steps": 3},
            "objective": {"temperature": {"start": 0.1}},
            "data": {"cache": tmp_path, "positives": {"title": 1.0}},
        },
    )
    dotted = {"training.steps": 3, "objective.temperature": 0.1, "data.cache": str(tmp_path)}
    assert nested == load_config("quickstart", {**dotted, "data.positives": "title"})
    assert nested.training.learning_rate == load_config("quickstart").training.learning_rate
    assert load_config("quickstart", ["training={steps: 3}"]) == load_config(
        "quickstart", ["training.steps=3"]
    )
    with pytest.raises(UserError, match=r"training\.stepps: unknown key \(did you mean steps"):
        load_config("quickstart", {"training": {"stepps": 3}})


@pytest.mark.parametrize("name", ["nodir", "nodir/", "no/such.txt"])
def test_text_that_is_not_there_is_named_before_its_form(name):
    with pytest.raises(UserError, match=rf"got sentences \({name!r} is no file or folder here\)"):
        load_config("quickstart", {"data.train": name})


def test_data_may_be_a_list(write):
    text = "data: [{train: a.txt, max_rows: 5}, {train: p.csv, form: pairs}]"
    path = write(f"{text}\nevaluation: {{dev: pairs, tasks: pairs}}")
    config = load_config(path, ["data.1.max_length=64", "data.2.train=n.csv", "data.2.form=nli"])
    assert [data.form for data in config.sets] == ["sentences", "pairs", "nli"]
    assert [data.max_length for data in config.sets] == [32, 64, 32]
    assert load_config(write(to_yaml(config), "again.yaml")) == config
    other = load_config(path, ["data.1.max_length=9", "data.2.train=n.csv"])
    assert differences(config, other) == [
        "data.1.max_length: 64 -> 9",
        "data.2.form: nli -> sentences",
    ]
    one = load_config("quickstart", ["data.1.train=p.csv", "data.1.form=pairs"])
    assert [data.train for data in one.sets] == [["python-docs"], ["p.csv"]]
    assert one.sets[0].max_length == 64  # as the config has it


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.train=x"], "argument data.train: train stands in a list; name an item by its num"),
        (["data.3.train=x"], "3 stands in a list; name an item by its number, at most 2"),
        (["data.1.formm=pairs"], "data.1.formm: unknown key (did you mean form?)"),
        (["data.1.form=pears"], "data.1.form: should be 'sentences'"),
        (["data.0.weight=2"], "data.weight: give one to each of the sets, or to none"),
        (["data.0.weight=0"], "data.0.weight: should be greater than 0, got 0"),
        (["data=[]"], "data: list should have at least 1 item"),
        (["data=5"], "data: should be a valid dictionary"),
        (["encoder.towers=two"], "encoder.towers: two needs data.form=pairs, got sentences, pairs"),
        (["evaluation.dev=documents"], "documents needs data.form=documents, got sentences, pairs"),
        (["data.0.form=documents", "data.1.form=documents", "data.1.held_out=0.2"],
         "data.held_out must be the same for all sets of documents"),
    ],
)  # fmt: skip
def test_mistakes_in_a_list_of_sets(write, overrides, expected):
    text = "data: [{train: a.txt}, {train: p.csv, form: pairs}]"
    path = write(f"{text}\nevaluation: {{dev: pairs, tasks: pairs}}")
    with pytest.raises(UserError, match=re.escape(expected)):
        load_config(path, overrides)


def test_a_date_may_be_the_name_of_a_folder(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("output: 2026-12-01\n")
    assert load_config(path).output == "2026-12-01"


def test_views_and_weights_are_set_from_the_command_line():
    config = load_config("quickstart", ["views.1.repeat=0.2", "objective.dims=8,4"])
    assert [view.repeat for view in config.views] == [0.0, 0.2]
    config = load_config("quickstart", ["objective.dims=8,4", "objective.dim_weights=1,0.5"])
    assert config.objective.dim_weights == [1.0, 0.5]
