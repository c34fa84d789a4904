"""What is not whole does not come in: weights, tokenizer, folder; and never by making it up."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ARCHITECTURES, SENTENCES, make_decoder, make_encoder, reseal
from safetensors.torch import load_file, save_file
from test_encoder import reference
from transformers import AutoConfig, AutoModel, BertModel, PreTrainedModel

from simcse.cli.main import main
from simcse.config.settings import EncoderConfig, ObjectiveConfig
from simcse.encoders import encoder
from simcse.encoders.gate import Origin, failing_for
from simcse.encoders.loading import load_model, load_trained
from simcse.errors import UserError
from simcse.training.text_embeddings import load_helper

MASKED = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "mpnet": "MPNetForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
}


@pytest.fixture
def plain(tiny, tmp_path):
    """A checkpoint that may be damaged."""
    return shutil.copytree(tiny, tmp_path / "plain")


@pytest.fixture
def stored(tiny, tmp_path):
    """A sentence-transformers model with a dense layer that may be damaged."""
    folder = tmp_path / "stored"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny), projection="always")), folder)
    return folder


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


def change_config(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def without_layer(weights):
    return {key: value for key, value in weights.items() if "layer.1." not in key}


def renamed(weights):
    return {f"other.{key}": value for key, value in weights.items()}


DAMAGE = {
    r"16 missing \(encoder\.layer\.1\.attention\.output\.LayerNorm\.bias, .*, …\)": (
        lambda folder: change_weights(folder, without_layer)
    ),
    r"53 missing \(embeddings\.LayerNorm\.bias, ": lambda folder: change_weights(folder, renamed),
    r"16 unexpected \(encoder\.layer\.2\.attention": (
        lambda folder: change_config(folder, num_hidden_layers=2)
    ),
    r"9 of another shape \(encoder\.layer\.0\.intermediate\.dense\.bias": (
        lambda folder: change_config(folder, intermediate_size=52)
    ),
}


@pytest.mark.parametrize("expected", DAMAGE)
def test_weights_are_never_made_up(plain, stored, expected):
    for folder in (plain, stored):
        DAMAGE[expected](folder)
    ways = [
        lambda: encoder.build(EncoderConfig(name=str(plain))),
        lambda: encoder.build(EncoderConfig(name=str(stored))),
        lambda: load_model(str(plain)),
        lambda: load_model(str(stored)),
        lambda: load_trained(stored, trust_remote_code=False),
        lambda: load_helper(
            ObjectiveConfig(terms={"distill_l2": 1.0}, teacher=str(stored)), "teacher"
        ),
        lambda: load_helper(ObjectiveConfig(guide=str(stored)), "guide"),
    ]
    for way in ways:
        with pytest.raises(UserError, match=f"its weights do not fit its config: {expected}"):
            way()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_and_old_buffers_are_left_out(tmp_path, architecture):
    folder = make_encoder(tmp_path / "encoder", architecture)
    torch.manual_seed(1)
    masked = getattr(transformers, MASKED[architecture])(AutoConfig.from_pretrained(folder))
    masked.save_pretrained(folder)
    name = f"{masked.base_model_prefix}.embeddings.position_ids"
    if "position_ids" in dict(masked.base_model.embeddings.named_buffers()):
        change_weights(folder, lambda weights: weights | {name: torch.arange(66)[None]})
    model = encoder.build(EncoderConfig(name=str(folder), pooling="cls"))
    np.testing.assert_allclose(model.encode(SENTENCES), reference(folder, "cls"), atol=2e-6)


def test_a_missing_pooler_is_left_out_and_not_made_up(stored, tmp_path):
    # As other programs save a model that was trained from a masked language model.
    (stored / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    first, second = (load_model(str(stored)) for _ in range(2))
    assert encoder.fingerprint(first) == encoder.fingerprint(second)
    encoder.save(first, tmp_path / "again")
    assert "pooler" not in " ".join(load_file(tmp_path / "again" / "model.safetensors"))
    # Unless the embedding comes from it.
    settings = {"max_seq_length": 64, "module_output_name": "token_embeddings"}
    way = {"method": "forward", "method_output_name": "pooler_output"}
    settings["modality_config"] = {"text": way}
    (stored / "sentence_bert_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"2 missing \(pooler\.dense\.bias, pooler\.dense\.weight"):
        load_model(str(stored))


def test_what_the_gate_asks_of_the_library(tiny, plain):
    original = PreTrainedModel.__dict__["from_pretrained"]
    assert isinstance(original, classmethod)
    assert "from_pretrained" not in BertModel.__dict__
    _, info = AutoModel.from_pretrained(tiny, output_loading_info=True)
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(info)
    verbosity = transformers.logging.get_verbosity()
    change_weights(plain, without_layer)
    with pytest.raises(UserError, match="missing"):
        encoder.build(EncoderConfig(name=str(plain)))
    assert PreTrainedModel.__dict__["from_pretrained"] is original
    assert transformers.logging.get_verbosity() == verbosity


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "t5", "longformer"])
def test_a_tokenizer_is_never_made_up(tmp_path, architecture):
    folder = make_encoder(tmp_path / "encoder", architecture)
    encoder.save(encoder.build(EncoderConfig(name=str(folder))), tmp_path / "model")
    for path in [*folder.glob("tokenizer*"), *(tmp_path / "model").glob("tokenizer*")]:
        path.unlink()
    for model in (folder, tmp_path / "model"):
        transformers.AutoTokenizer.from_pretrained(model)  # is no error
        with pytest.raises(UserError, match="the files of its tokenizer are missing"):
            load_model(str(model))
        with pytest.raises(UserError, match="the files of its tokenizer are missing"):
            encoder.build(EncoderConfig(name=str(model)))


def test_a_tokenizer_of_another_model_is_refused(plain):
    config = AutoConfig.from_pretrained(plain, vocab_size=8000)
    AutoModel.from_config(config).save_pretrained(plain)
    with pytest.raises(UserError, match="tokenizer is another model's: token 8191 of 8000"):
        encoder.build(EncoderConfig(name=str(plain)))


@pytest.mark.parametrize(
    "part", ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
)
def test_incomplete_folders_are_refused(stored, part):
    (stored / part).unlink()
    with pytest.raises(UserError, match=f"{stored}( cannot be loaded)?: ") as error:
        load_model(str(stored))
    assert "\n" not in str(error.value) and Path(part).name in str(error.value)
    shutil.rmtree(stored / part.split("/")[0])
    with pytest.raises(
        UserError, match=f"{stored}: {part.split('/')[0]}/config.json: No such file"
    ):
        load_trained(stored, trust_remote_code=False)


def test_weights_are_finite(two_seeds, arguments, tmp_path, capsys):
    run = shutil.copytree(two_seeds / "seed-0", tmp_path / "broken")
    name = "encoder.layer.1.output.dense.bias"
    change_weights(run, lambda weights: weights | {name: weights[name] * torch.nan})
    reseal(run)
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    for command in (
        [*arguments, f"encoder.name={run}", "encoder.projection=none"],
        ["encode", str(tmp_path / "a.txt"), "-o", str(tmp_path / "e.npy"), "--model", str(run)],
        ["evaluate", str(run), "--tasks", "pairs"],
        ["export", str(run), str(tmp_path / "exported")],
        ["publish", str(run), "me/model", "--dry-run"],
    ):
        assert main(command) == 2
        assert f"{run}: its weight 0.model.{name} holds NaN" in capsys.readouterr().err
    assert not (tmp_path / "e.npy").exists()


def test_embeddings_are_finite(plain, tmp_path, capsys):
    name = "embeddings.word_embeddings.weight"
    change_weights(plain, lambda weights: weights | {name: weights[name] * 1e38})
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    command = ["encode", str(tmp_path / "a.txt"), "-o", str(tmp_path / "e.npy")]
    assert main([*command, "--model", str(plain), "--pooling", "cls"]) == 2
    assert "6 of 6 embeddings hold NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "e.npy").exists()


def test_a_config_names_its_encoder_and_its_consent(monkeypatch):
    config = EncoderConfig(name="me/mine", revision="v1", trust_remote_code=True)
    found = {("me/mine", "v1"): "/a/folder"}
    monkeypatch.setattr(encoder, "snapshot", lambda *name, refresh: found[name])
    origin = encoder.origin_of(config)
    assert (origin.path, origin.trust_remote_code) == ("/a/folder", True)


class Trap:
    """Leaves a mark when a pickle of it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_models_own_files_cannot_ask_for_pickles(stored, tmp_path):
    config = json.loads((stored / "config.json").read_text())
    del config["dtype"]
    (stored / "config.json").write_text(json.dumps(config))
    settings = json.loads((stored / "sentence_bert_config.json").read_text())
    settings["model_args"] = {"weights_only": False, "dtype": "auto"}
    (stored / "sentence_bert_config.json").write_text(json.dumps(settings))
    weights = load_file(stored / "model.safetensors")
    (stored / "model.safetensors").unlink()
    torch.save({**weights, "zz": Trap(tmp_path / "mark")}, stored / "pytorch_model.bin")
    with pytest.raises(UserError, match="Weights only load failed"):
        load_model(str(stored))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["/tmp/elsewhere", "../elsewhere", "a/../../b"])
def test_names_of_modules_stay_in_their_folder(stored, tiny, tmp_path, name):
    modules = json.loads((stored / "modules.json").read_text())
    modules[1]["path"] = name
    (stored / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"a module is called .* which is no plain name"):
        load_model(str(stored))
    two = tmp_path / "two"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny), towers="two")), two)
    path = two / "router_config.json"
    router = json.loads(path.read_text())
    router["structure"][f"{name}/query"] = router["structure"]["query"]
    path.write_text(json.dumps(router))
    with pytest.raises(UserError, match=r"a module is called .* which is no plain name"):
        load_model(str(two))


def test_a_file_that_is_no_settings_is_let_be(stored):
    """As that of sentence-transformers/all-MiniLM-L6-v2, a list of data sets."""
    (stored / "data_config.json").write_text('[{"name": "a.jsonl.gz", "lines": 5, "weight": 1}]')
    assert load_model(str(stored))


def test_layers_are_counted_wherever_a_number_of_them_stands(stored):
    settings = json.loads((stored / "sentence_bert_config.json").read_text())
    settings["config_args"] = {"num_hidden_layers": 20_000}
    (stored / "sentence_bert_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="num_hidden_layers is 20000; allowed is up to 1,000"):
        load_model(str(stored))


def test_a_run_that_links_elsewhere_is_refused(two_seeds, tmp_path, capsys):
    run = shutil.copytree(two_seeds / "seed-0", tmp_path / "linked")
    (tmp_path / "secret").write_text("private")
    (run / "chat_template.jinja").symlink_to(tmp_path / "secret")
    for command in (["export", str(run), str(tmp_path / "out")],
                    ["publish", str(run), "me/model", "--dry-run"]):  # fmt: skip
        assert main(command) == 2
        answer = capsys.readouterr()
        assert "chat_template.jinja: a link, which no run makes" in answer.err
        assert "private" not in answer.out
    (run / "chat_template.jinja").unlink()
    (tmp_path / "mine").mkdir()
    (run / "evaluation").symlink_to(tmp_path / "mine")
    assert main(["evaluate", str(run), "--tasks", "pairs"]) == 2
    assert "evaluation: a link, which no run makes" in capsys.readouterr().err
    assert not list((tmp_path / "mine").iterdir())


def test_every_setting_that_makes_embeddings_is_in_the_fingerprint(stored):
    model = load_model(str(stored))
    known = {encoder.fingerprint(model)}
    for change in (("truncate_dim", 8), ("default_prompt_name", "query")):
        setattr(model, *change)
        known.add(encoder.fingerprint(model))
    model.tokenizer.truncation_side = "left"
    assert len(known | {encoder.fingerprint(model)}) == 4


@pytest.mark.parametrize("name", ["config.json", "modules.json", "model.safetensors"])
def test_a_pipe_in_a_models_folder_is_not_waited_for(plain, name):
    (plain / name).unlink(missing_ok=True)
    os.mkfifo(plain / name)
    with pytest.raises(UserError, match=f"{name} is a pipe or device; expected a file"):
        load_model(str(plain))


def test_longest_inputs_end_with_the_learned_positions(tiny, tmp_path, caplog):
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), tmp_path / "long")
    settings = tmp_path / "long" / "sentence_bert_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_seq_length": 5000}))
    loaded = load_model(str(tmp_path / "long"), device="cpu")
    positions = loaded[0].model.embeddings.position_embeddings.num_embeddings
    assert loaded.max_seq_length == positions
    expected = f"a longest input of 5,000 tokens, its encoder has {positions} positions"
    assert [expected in record.message for record in caplog.records] == [True]
    assert np.isfinite(loaded.encode(["word " * 6000])).all()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("missing_keys"), "KeyError: 'missing_keys'"),  # alone like a user's mistake
        (RuntimeError(), "RuntimeError"),
        (OSError("no such file\nat all"), "no such file"),
    ],
)
def test_a_defect_while_loading_is_named_by_its_kind(error, reason, tiny):
    origin = Origin("m", str(tiny), "", False)
    with pytest.raises(UserError) as found, failing_for(origin):
        raise error
    assert str(found.value) == f"m cannot be loaded: {reason}"


def test_a_name_in_the_config_that_the_library_does_not_know_is_said_with_its_key(tmp_path):
    folder = make_decoder(tmp_path)
    change_config(folder, rope_parameters={"rope_type": "winding", "rope_theta": 10000.0})
    with pytest.raises(UserError, match=r"config\.json: rope_type: 'winding' is unknown"):
        load_model(str(folder), "mean")


def change_json(name, **settings):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def without_weights(part):
    def change(folder):
        zero = lambda weights: {k: w * (part not in k) for k, w in weights.items()}  # noqa: E731
        change_weights(folder, zero)

    return change


def take_weights_from_elsewhere(folder):
    weights = folder / "model.safetensors"
    names = list(load_file(weights))
    weights.rename(folder.parent / "private.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../private.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


LONG = "word " * 100
SAME = "different texts get the same embedding; its longest input is"
MODES = "1_Pooling/config.json: of the pooling modes, each true or false, at least one"
UNSOUND = {
    "length": (change_json("sentence_bert_config.json", max_seq_length=2), f"{SAME} 2 tokens"),
    "prompt": (
        change_json(
            "config_sentence_transformers.json", prompts={"x": LONG}, default_prompt_name="x"
        ),
        f"{SAME} 64 tokens",
    ),
    "query": (change_json("config_sentence_transformers.json", prompts={"query": LONG}), SAME),
    "zero": (without_weights(""), SAME),
    "words": (without_weights("word_embeddings"), SAME),
    "cut": (
        change_json("config_sentence_transformers.json", truncate_dim=-3),
        "truncate_dim: should be greater than 0, got -3",
    ),
    "nothing": (change_json("config_sentence_transformers.json", truncate_dim=0), "truncate_dim: "),
    "width": (
        change_json("1_Pooling/config.json", word_embedding_dimension=33),
        "its embeddings are 32 wide, its files say 33",
    ),
    "no mode": (change_json("1_Pooling/config.json", pooling_mode_mean_tokens=False), MODES),
    "text": (change_json("1_Pooling/config.json", pooling_mode_cls_token="false"), MODES),
    "kind": (
        change_json("config_sentence_transformers.json", model_type="SparseEncoder"),
        "is a SparseEncoder; expected a SentenceTransformer",
    ),
    "length of text": (
        change_json("sentence_bert_config.json", max_seq_length="many"),
        "max_seq_length: should be a valid integer, got 'many'",
    ),
    "shards": (
        take_weights_from_elsewhere,
        "model.safetensors.index.json: '../private.safetensors' is no file of its folder",
    ),
}


def test_what_holds_runs_is_no_model_and_a_refusal_is_one_line(two_seeds, tmp_path, plain, capsys):
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    (plain / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    for folder, expected in (
        (two_seeds, "holds several runs; name the folder of one of them"),
        (unfinished, "a run that is not finished; run its command again"),
        (plain, "a .safetensors file is damaged, or only a pointer to it"),
    ):
        words = ["search", "x", "--corpus", str(plain / "config.json"), "--model", str(folder)]
        assert main(words) == 2
        message = capsys.readouterr().err
        assert expected in message and message.count("\n") == 1


@pytest.mark.parametrize("kind", UNSOUND)
def test_a_model_that_reads_no_text_is_refused(tiny, tmp_path, kind):
    change, expected = UNSOUND[kind]
    folder = tmp_path / "stored"
    encoder.save(encoder.build(EncoderConfig(name=str(tiny), pooling="mean")), folder)
    change(folder)
    for way in (
        lambda: encoder.build(EncoderConfig(name=str(folder))),
        lambda: load_model(str(folder)),
        lambda: load_trained(folder, trust_remote_code=False),
    ):
        with pytest.raises(UserError, match=expected):
            way()


def test_two_pooling_modes_are_legal(tiny, tmp_path):
    encoder.save(encoder.build(EncoderConfig(name=str(tiny), pooling="mean")), tmp_path)
    change_json("1_Pooling/config.json", pooling_mode_cls_token=True)(tmp_path)
    model = load_model(str(tmp_path))
    assert encoder.pooling_of(model) == "cls+mean"
    assert model.encode("A cat.").shape == (64,)


def test_a_plain_encoder_that_reads_no_text_is_refused(plain):
    change_json("tokenizer_config.json", model_max_length=2)(plain)
    with pytest.raises(UserError, match=f"{SAME} 2 tokens"):
        load_model(str(plain), "mean")


TYPES = [
    ("config.json", None, "should be a valid dictionary, got None"),
    ("config.json", "{", "not valid JSON: Expecting property name"),
    ("config.json", {"hidden_size": "32"}, "hidden_size: should be a positive number, got '32'"),
    ("config.json", {"hidden_act": "x"}, "hidden_act: should be the name of an activation"),
    ("config.json", {"dtype": "float31"}, "dtype: should be a type of numbers, such as float32"),
    ("config.json", {"model_type": ["bert"]}, "model_type: should be a valid string"),
    ("config.json", {"layer_norm_eps": "x"}, "Field 'layer_norm_eps' expected float, got str"),
    ("config.json", {"pad_token_id": "x"}, "Field 'pad_token_id' with value 'x' doesn't match"),
    ("tokenizer_config.json", [], "should be a valid dictionary, got []"),
    ("tokenizer_config.json", {"pad_token": 3}, "pad_token: should be a token as text, got 3"),
    ("tokenizer_config.json", {"padding_side": "up"}, "padding_side: should be 'left' or 'right'"),
    ("tokenizer_config.json", {"model_max_length": "9"}, "model_max_length: should be a valid num"),
    ("modules.json", 3, "should be a valid list, got 3"),
    ("modules.json", [{"name": "0", "path": None, "type": "x"}], "0.path: should be a valid str"),
    ("sentence_bert_config.json", {"model_args": None}, "model_args: should be a valid dictionary"),
    ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length: should be greater than"),
    ("config_sentence_transformers.json", {"prompts": []}, "prompts: should be a valid dictionary"),
    (
        "config_sentence_transformers.json",
        {"model_type": 1},
        "model_type: should be a valid string",
    ),
    (
        "1_Pooling/config.json",
        {"include_prompt": "no"},
        "include_prompt: should be a valid boolean",
    ),
    ("1_Pooling/config.json", {"word_embedding_dimension": None}, "embedding_dimension: missing"),
    ("2_Dense/config.json", {"in_features": 1.5}, "in_features: should be a valid integer"),
    ("config.json", {"pad_token_id": 9000}, "pad_token_id: 9000 is none of vocab_size 8192"),
    ("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "no tokenizer can be"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": "y"}}, "added_tokens_decoder.x: stri"),
    ("modules.json", [{"name": "0", "path": "", "type": "x"}] * 2, "two modules are called '0'"),
    ("config_sentence_transformers.json", {"prompts": {"a": "\ud800"}}, "prompts.a: should be va"),
    ("adapter_config.json", '{"r": "x"}', "r: should be a valid integer, got 'x'"),
    ("adapter_config.json", '{"peft_type": "NOPE"}', "peft_type: should be a kind of adapter, suc"),
    (
        "adapter_config.json",
        '{"base_model_name_or_path": "/no/where"}',
        "base_model_name_or_path: ",
    ),
    ("tokenizer.json", "[]", "no tokenizer: "),
    ("config.json", "\ufeff{}", "not valid JSON: Unexpected UTF-8 BOM"),
    ("2_Dense/config.json", {"out_features": -1}, "out_features: should be greater than 0"),
]


@pytest.mark.parametrize(("name", "content", "expected"), TYPES)
def test_a_setting_of_another_type_is_named_with_file_and_key(stored, name, content, expected):
    path = stored / name
    if isinstance(content, dict):
        content = json.loads(path.read_text()) | content
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_model(str(stored))
    assert f"{name}: {expected}" in str(caught.value) and "\n" not in str(caught.value)


def test_modules_that_make_no_embedding_are_listed(stored):
    modules = json.loads((stored / "modules.json").read_text())
    for others, listed in (([0], "Transformer"), ([1, 0, 2], "Pooling, Transformer, Dense")):
        (stored / "modules.json").write_text(json.dumps([modules[i] for i in others]))
        with pytest.raises(UserError, match=rf"its modules \({listed}\) make no embedding of a te"):
            load_model(str(stored))


def test_a_tokenizer_of_far_fewer_tokens_is_said(stored, tiny, tmp_path, caplog):
    load_model(str(stored))
    assert "another model's" not in caplog.text
    shutil.copy(make_decoder(tmp_path / "other") / "tokenizer.json", stored)
    load_model(str(stored))
    assert re.search(r"its tokenizer knows \d{3} tokens, .* another model's\?", caplog.text)


def test_a_dense_layer_of_another_width_is_named_with_its_weight(stored):
    change_json("2_Dense/config.json", in_features=33)(stored)
    with pytest.raises(UserError, match="for Dense: size mismatch for linear"):
        load_model(str(stored))


def test_layers_to_pool_are_numbers(tiny, tmp_path):
    config = EncoderConfig(name=str(tiny), pooling="avg_first_last")
    encoder.save(encoder.build(config), tmp_path / "m")
    change_json("1_WeightedLayerPooling/config.json", layer_start="x")(tmp_path / "m")
    expected = "layer_start: should be a valid integer, got 'x'"
    with pytest.raises(UserError, match=expected):
        load_model(str(tmp_path / "m"))
