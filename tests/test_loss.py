"""Objectives in whole runs: state in checkpoints, schedules, teachers, two towers, bad input."""

import json
import math
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from conftest import SENTENCES, log, loss_of, make_encoder, make_masked_encoder, terms_of
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss
from transformers import BertForMaskedLM

from simcse.cli.main import main
from simcse.config.reading import validate
from simcse.config.settings import Config, EncoderConfig, TemperatureConfig
from simcse.data.views import ViewCollator
from simcse.encoders import encoder
from simcse.objectives import (
    Dino,
    DistillStart,
    MaskedLanguageModel,
    clip,
    distill_similarity,
    guide_mask,
    info_nce,
)
from simcse.objectives.temperature import Temperature
from simcse.training import loop, setup
from simcse.training.loss import TrainingLoss
from simcse.training.text import view_collator


@pytest.fixture
def arguments(arguments):
    """A run of 6 steps with a checkpoint every 2."""
    return [*arguments, "training.steps=6", "evaluation.every=2"]


def write(path, rows):
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def triplets(tmp_path):
    rows = [
        f"the {a} is {b},a {b} {a},no {a} is {b}" for a in SENTENCES[0].split() for b in "rstuv"
    ]
    return write(tmp_path / "t.csv", ["sent0,sent1,hard_neg", *rows])


@pytest.fixture
def captions(tmp_path):
    rows = [f'g{i}\tview {j} of "thing {i}' for i in range(24) for j in range(3)]
    return write(tmp_path / "c.tsv", rows)


GROUPS = ["data.form=labelled", "data.names=[id, text]", "data.columns=[text, id]"]
GROUPS += ["data.quotes=false"]


@pytest.fixture
def teacher(tmp_path):
    """A sentence-transformers model of another width."""
    folder = make_encoder(tmp_path / "big", hidden_size=48)
    encoder.save(encoder.build(EncoderConfig(name=str(folder))), tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def masked(tmp_path, tiny):
    """An encoder with its masked-language-model head."""
    return make_masked_encoder(tmp_path / "masked")


def settings(name, request):
    if name == "distill_start":
        return ["objective.terms={info_nce: 1, distill_start: 1}"]
    if name == "sup_con":
        file = request.getfixturevalue("captions")
        return [f"data.train={file}", *GROUPS, "objective.terms=sup_con"]
    if name == "groups":
        return [f"data.train={request.getfixturevalue('captions')}", *GROUPS]
    if name == "triplets":
        file = request.getfixturevalue("triplets")
        return [
            f"data.train={file}",
            "data.form=pairs",
            "objective.terms.info_nce.hard_negative_weight=2",
        ]
    if name == "towers":
        file = request.getfixturevalue("triplets")
        columns = ["data.columns=[sent0, sent1]", "encoder.towers=two", "encoder.projection=none"]
        return [f"data.train={file}", "data.form=pairs", *columns, "objective.terms=clip"]
    if name.startswith("distill"):
        teacher = request.getfixturevalue("teacher")
        return [f"objective.terms={name}", f"objective.teacher={teacher}"]
    if name == "mlm":
        model = request.getfixturevalue("masked")
        return [f"encoder.name={model}", "objective.terms=[{info_nce: 1.0}, {mlm: 0.1}]"]
    if name == "views":
        return ["views=[{dropout: 0.2}, {repeat: 0.3, cutoff: 0.2, shuffle: true}]"]
    if name == "cached":
        return ["objective.terms=clip", "training.mini_batch_size=3"]
    if name == "dims":
        return ["objective.dims=32,8", "encoder.projection=none", "training.mini_batch_size=3"]
    if name == "dino":
        return ["objective.terms=dino", "objective.terms.dino.prototypes=16"]
    return [f"objective.terms={name}"]


NAMES = [
    "nt_xent", "decoupled", "clip", "dino", "mlm", "sup_con", "groups", "triplets", "towers",
    "distill_l2", "distill_similarity", "distill_start", "views", "cached",
    "dims",
]  # fmt: skip


DEFAULT = ("dino",)  # which has a state, that is saved as well


@pytest.mark.parametrize(
    "name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_a_stopped_run_resumes_to_the_same_weights_and_log(
    name, arguments, run, request, monkeypatch, capsys
):
    # It stops between two lines of the log and two scores, whose averages span the interruption.
    words = [*arguments, *settings(name, request), "training.log_every=2"]
    assert main(words) == 0
    whole = {p.relative_to(run): load_file(p) for p in run.rglob("*.safetensors")}
    entries = log(run)
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 4, 6]
    assert all(np.isfinite(entry["loss"]) for entry in entries if "loss" in entry)
    run.rename(run.with_name("whole"))

    original, calls = loop.backpropagate, []

    def stops(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backpropagate", stops)
        assert main(words) == 143
    assert main(words) == 0
    assert "checkpoint-3\n" in capsys.readouterr().out
    for file, values in whole.items():
        again = load_file(run / file)
        assert values.keys() == again.keys()
        assert all(torch.equal(values[key], again[key]) for key in values), file
    timed = {"eval_runtime", "train_runtime", "train_samples_per_second", "train_steps_per_second"}

    def comparable(entries):
        return [{k: v for k, v in e.items() if k not in timed} for e in entries]

    assert comparable(log(run)) == comparable(entries)
    exported = {path.name for path in run.rglob("*") if path.is_file()}
    assert "objective.safetensors" not in exported


def test_objective_state_is_trained_clipped_and_kept(arguments, run, monkeypatch):
    norms = []
    original = loop.clip_gradients

    def spy(parameters, limit):
        parameters = list(parameters)
        norms.append(math.sqrt(sum(float(p.grad.norm()) ** 2 for p in parameters)))
        found = original(parameters, limit)
        after = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in parameters))
        assert after == pytest.approx(min(norms[-1], limit), rel=1e-4)
        return found

    monkeypatch.setattr(loop, "clip_gradients", spy)
    words = ["objective.terms=clip", "objective.temperature={start: 0.2, schedule: learnable}"]
    assert main([*arguments, *words, "training.learning_rate=0.02"]) == 0
    temperatures = [entry["temperature"] for entry in log(run) if "loss" in entry]
    assert temperatures[0] == pytest.approx(0.2, rel=0.2)
    assert len(set(temperatures)) == 6  # it learns
    logged = [entry["grad_norm"] for entry in log(run) if "grad_norm" in entry]
    assert logged == pytest.approx(norms, rel=1e-4)  # the temperature's gradient is part of it


def test_schedules_follow_the_run(arguments, run):
    words = ["objective.temperature={start: 0.2, schedule: linear, end: 0.08}"]
    assert main([*arguments, *words]) == 0
    temperatures = [entry["temperature"] for entry in log(run) if "loss" in entry]
    assert temperatures == pytest.approx([0.2 - 0.024 * step for step in range(6)])  # to its end


def test_temperature_closed_forms():
    cosine = Temperature(TemperatureConfig(start=0.2, schedule="cosine", end=0.1))
    for progress, expected in ((0, 0.2), (0.5, 0.15), (1, 0.1)):
        cosine.progress = progress
        assert cosine() == pytest.approx(expected)
    learned = Temperature(TemperatureConfig(start=0.07, schedule="learnable"))
    assert float(learned().detach()) == pytest.approx(0.07)
    assert learned().requires_grad
    with torch.no_grad():
        learned.logarithm.fill_(-20)
    assert float(learned().detach()) == pytest.approx(0.01)  # CLIP's cap of 100
    learned().backward()
    assert float(learned.logarithm.grad) == pytest.approx(0.01)  # and it can still come back


def batch_of(model, texts, **layout):
    rows = [
        {"input_ids": [ids], "text_hash": [number], "label": 0}
        for number, ids in enumerate(model.tokenizer(texts)["input_ids"])
    ]
    return ViewCollator(0, **layout).features(rows, model.device)


def test_loss_is_the_objective_on_both_views(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny), dropout=0.0)).train()
    loss = TrainingLoss(model, Config())
    features = batch_of(model, SENTENCES)
    found = loss_of(loss, features)
    embeddings = torch.from_numpy(model.encode(SENTENCES))
    torch.testing.assert_close(found, info_nce(embeddings, embeddings, 0.05), rtol=1e-4, atol=1e-5)
    assert set(loss.objective.log_values()) >= {"temperature", "effective_negatives"}


def test_identical_texts_of_a_batch_are_masked_unless_told_otherwise(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny), dropout=0.0)).train()
    features = batch_of(model, [*SENTENCES, SENTENCES[0]])
    features["identities"][:, -1] = features["identities"][:, 0]
    masked = loss_of(TrainingLoss(model, Config()), features)
    unmasked_config = validate({"objective": {"mask_identical": False}}, "test")
    unmasked = loss_of(TrainingLoss(model, unmasked_config), features)
    assert float(masked) < float(unmasked)


def test_teacher_follows_and_is_no_parameter_of_the_optimiser(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny)))
    teacher = Dino(model, momentum=0.9)
    assert not any(p.requires_grad for p in teacher.teacher.parameters())
    before = next(teacher.teacher.parameters()).clone()
    student = next(model.parameters())
    with torch.no_grad():
        student.add_(1)
    teacher.after_step(model, progress=0.0)
    now = next(teacher.teacher.parameters())
    torch.testing.assert_close(now, 0.9 * before + 0.1 * student)
    teacher.after_step(model, progress=1.0)  # the momentum has risen to 1
    torch.testing.assert_close(next(teacher.teacher.parameters()), now)
    now = now.clone()
    with torch.no_grad():
        student.add_(1)
    teacher.after_step(model, progress=0.25)  # along a cosine: 1 - 0.1 * (cos(pi / 4) + 1) / 2
    expected = now.lerp(student, 0.1 * (2**0.5 / 2 + 1) / 2)
    torch.testing.assert_close(next(teacher.teacher.parameters()), expected)


def test_the_teacher_follows_dinos_schedule_but_not_a_skipped_step(arguments, monkeypatch):
    found, steps = [], []
    follow, step = Dino.after_step, AcceleratedOptimizer.step

    def followed(self, model, progress):
        old, new = self.teacher_head.mlp[0].bias.clone(), self.head.mlp[0].bias.detach()
        follow(self, model, progress)
        most = int((new - old).abs().argmax())
        found.append(float(((new - self.teacher_head.mlp[0].bias) / (new - old))[most]))

    def skipping(self, closure=None):
        steps.append(len(steps))
        self._is_overflow = len(steps) == 3  # as where float16's loss scaling meets infinity
        if not self._is_overflow:
            step(self, closure)

    monkeypatch.setattr(Dino, "after_step", followed)
    monkeypatch.setattr(AcceleratedOptimizer, "step", skipping)
    words = [
        "objective.terms=dino",
        "objective.terms.dino.prototypes=16",
        "objective.terms.dino.momentum=0.5",
    ]
    assert main([*arguments, *words]) == 0
    # DINO's cosine_scheduler(0.5, 1, ...): a value a step, the first of them the start.
    schedule = 1 + 0.5 * (0.5 - 1) * (1 + np.cos(np.pi * np.arange(6) / 6))
    assert len(steps) == 6
    assert found == pytest.approx(np.delete(schedule, 2).tolist(), abs=1e-3)


def test_dinos_teacher_has_dropout_of_its_own_and_its_centre_follows(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny))).train()
    state = Dino(model, prototypes=16)
    features = batch_of(model, SENTENCES)
    features.pop("identities")
    student = torch.randn(2, 6, 32)
    seen = []
    for _ in range(2):
        before = state.get_buffer("center").clone()
        state(*student, features)
        seen.append(state.last)
        expected = 0.9 * before + 0.1 * state.last.mean(dim=0)
        torch.testing.assert_close(state.get_buffer("center"), expected)
    assert not torch.equal(*seen)


def test_distill_start_compares_with_the_model_as_it_was(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny))).train()
    term = DistillStart(model, temperature=0.1, teacher_temperature=0.2, mini_batch_size=5)
    features = batch_of(model, SENTENCES)
    features.pop("identities")
    with torch.no_grad():
        before = model.eval()(dict(features))["sentence_embedding"].view(2, 6, 32)
        for weight in model.parameters():
            weight.mul_(1.1)
    student = torch.randn(2, 6, 32, requires_grad=True)
    loss = term(*student, features)
    expected = [distill_similarity(s, t, 0.1, 0.2) for s, t in zip(student, before, strict=True)]
    torch.testing.assert_close(loss, sum(expected) / 2)
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert not term.state_dict() and not list(term.parameters())  # nothing for checkpoints


def test_mlm_never_hides_special_tokens_or_padding(masked, monkeypatch):
    source = EncoderConfig(name=str(masked))
    model = encoder.build(source).train()
    mlm = MaskedLanguageModel(model, source, probability=0.9)
    features = batch_of(model, SENTENCES)
    shown = {}

    def spy(states, labels):
        shown["labels"] = labels
        return states.sum()

    def states(texts):
        shown.update(texts)
        return torch.ones(1)

    monkeypatch.setattr(mlm, "cross_entropy", spy)
    [_] = mlm.token_losses(states, features["input_ids"], features["attention_mask"])
    special = torch.isin(features["input_ids"], torch.tensor(model.tokenizer.all_special_ids))
    assert torch.equal(shown["input_ids"][special], features["input_ids"][special])
    assert (shown["labels"][special] == -100).all()
    assert (shown["labels"] != -100).float()[~special].mean() > 0.8


def test_other_encoders_of_a_run_have_its_precision(masked):
    config = validate(
        {
            "encoder": {"name": str(masked)},
            "objective": [{"dino": 1.0}, {"mlm": 0.1}],
            "training": {"precision": "bfloat16"},
        },
        "test",
    )
    model = encoder.build(config.encoder).train()
    training_loss = TrainingLoss(model, config)
    dino, mlm = training_loss.objective.terms
    dtypes = []
    for module in (dino.teacher, model, mlm.full):
        linear = next(m for m in module.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    features = batch_of(model, SENTENCES)
    [(_, loss)] = training_loss.token_terms(features)
    assert loss.dtype == torch.float32 and loss.requires_grad
    assert dtypes == [torch.bfloat16] * 2
    features.pop("identities")
    assert dino(*torch.randn(2, 6, 32), features).dtype == torch.float32
    assert dtypes == [torch.bfloat16] * 3


def test_a_learned_temperature_does_not_decay(tiny):
    config = validate({"objective": "clip", "training": {"weight_decay": 0.5}}, "test")
    loss = TrainingLoss(encoder.build(EncoderConfig(name=str(tiny))), config)
    names = {id(p): name for name, p in loss.named_parameters()}
    groups = setup.make_optimizer(config, loss).param_groups
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays["objective.temperature.logarithm"] == 0
    assert {name for name, decay in decays.items() if decay} == {
        name for name, p in loss.named_parameters() if p.ndim > 1
    }


def test_mlm_shares_the_encoder_and_takes_the_pretrained_head(masked):
    config = validate(
        {"encoder": {"name": str(masked)}, "objective": [{"info_nce": 1.0}, {"mlm": 0.1}]}, "test"
    )
    model = encoder.build(config.encoder).train()
    loss = TrainingLoss(model, config)
    model.eval()
    texts = batch_of(model, SENTENCES)
    found = {key: texts[key] for key in ("input_ids", "attention_mask")}
    labels = found["input_ids"].where(found["input_ids"] % 3 == 0, -100)
    total = loss.objective.terms[1].cross_entropy(model(dict(found))["token_embeddings"], labels)
    pretrained = BertForMaskedLM.from_pretrained(masked).eval()
    mean = pretrained(**found, labels=labels).loss
    torch.testing.assert_close(total / (labels != -100).sum(), mean)
    total.backward()
    mean.backward()
    words = model[0].model.embeddings.word_embeddings.weight.grad / (labels != -100).sum()
    torch.testing.assert_close(words, pretrained.bert.embeddings.word_embeddings.weight.grad)
    torch.manual_seed(0)
    model.train()
    terms = terms_of(loss, batch_of(model, SENTENCES * 3))
    assert set(terms) == {"info_nce", "mlm"}
    assert float(terms["mlm"]) == pytest.approx(0.1 * np.log(8192), rel=0.2)  # knows nothing yet
    own = loss.objective._own()
    assert own and not any("embeddings" in key or "encoder" in key for key in own)


def test_mlm_sees_every_column_as_it_is(masked, monkeypatch):
    config = validate(
        {
            "encoder": {"name": str(masked)},
            "objective": [{"info_nce": 1.0}, {"mlm": 0.1}],
            "data": {"form": "sentences"},
            "views": [{"shuffle": True}, {"cutoff": 0.5, "repeat": 0.5}],
        },
        "test",
    )
    model = encoder.build(config.encoder).train()
    loss = TrainingLoss(model, config)
    seen = []
    mlm = loss.objective.terms[1]
    monkeypatch.setattr(mlm, "token_losses", lambda _, *texts: seen.append(texts) or [])
    collator = view_collator(config, config.sets[0], model)
    ids = model.tokenizer([*SENTENCES, *SENTENCES[::-1]])["input_ids"]
    for columns in (1, 3):  # a sentence; anchor, positive and hard negative
        rows = [
            {"input_ids": ids[i : i + columns], "text_hash": list(range(i, i + columns))}
            for i in range(4)
        ]
        features = collator.features(rows, model.device)
        assert not list(loss.token_terms(features))
        found, mask = seen.pop()
        expected = [ids[i + c % columns] for c in range(max(2, columns)) for i in range(4)]
        assert [row[keep.bool()].tolist() for row, keep in zip(found, mask, strict=True)] == (
            expected
        )
        assert not torch.equal(features["input_ids"][:, :5], found[:, :5])


def test_mlm_trains_a_checkpoint_of_half_precision(arguments, run, masked):
    BertForMaskedLM.from_pretrained(masked).half().save_pretrained(masked)
    words = [f"encoder.name={masked}", "objective.terms=[{info_nce: 1.0}, {mlm: 0.1}]"]
    assert main([*arguments, *words, "training.steps=2"]) == 0
    assert {value.dtype for value in load_file(run / "model.safetensors").values()} == {
        torch.float32
    }


def test_terms_of_a_hybrid_are_logged_apart(arguments, run, masked):
    words = [f"encoder.name={masked}", "objective=[{info_nce: 1.0}, {decoupled: 0.5}]"]
    assert main([*arguments, *words]) == 0
    [first, *_] = [entry for entry in log(run) if "loss" in entry]
    assert first["info_nce"] + first["decoupled"] == pytest.approx(first["loss"], abs=2e-4)


def test_two_towers_load_as_a_router(arguments, run, triplets, capsys):
    words = settings("towers", type("R", (), {"getfixturevalue": lambda *_: triplets})())
    assert main([*arguments, *words]) == 0
    model = SentenceTransformer(str(run))
    # Anchors go through the queries' tower: swapped, a batch of pairs has another loss.
    loss = TrainingLoss(model.eval(), Config(objective={"terms": {"clip": 1.0}}))
    loss.two_towers = True
    ids = model.tokenizer(SENTENCES)["input_ids"]
    rows = [
        {"input_ids": [ids[i], ids[5 - i]], "text_hash": [i, i + 9], "label": 0} for i in range(6)
    ]
    found = loss_of(loss, ViewCollator(0).features(rows, model.device))
    pair = (model.encode_query(SENTENCES), model.encode_document(SENTENCES[::-1]))
    expected = clip(*map(torch.from_numpy, pair), 0.07)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    queries, documents = model.encode_query(SENTENCES), model.encode_document(SENTENCES)
    assert queries.shape == documents.shape == (6, 32)
    assert not np.allclose(queries, documents)
    np.testing.assert_allclose(model.encode(SENTENCES), queries, atol=1e-6)


def test_teacher_is_asked_once(arguments, run, teacher, capsys):
    words = [
        "objective.terms=distill_l2",
        f"objective.teacher={teacher}",
        f"data.cache={run.with_name('cache')}",
    ]
    assert main([*arguments, *words]) == 0
    assert "embedding 48 texts, 48 wide" in capsys.readouterr().out
    assert main([*arguments, *words, f"output={run.with_name('again')}"]) == 0
    assert "embedding 48 texts" not in capsys.readouterr().out
    [path] = run.with_name("cache").glob("*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    assert main([*arguments, *words, f"output={run.with_name('third')}", "--dry-run"]) == 0
    found = capsys.readouterr().out
    assert f"warning: {path}: not what was written there" in found and "embedding 48 t" in found
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["absolute", "relative"])
@pytest.mark.parametrize("columns", [2, 3])
def test_a_guide_leaves_out_what_gistembed_leaves_out(tiny, teacher, columns, kind):
    """Equal to sentence-transformers' loss on one batch, where it compares the same pairs."""
    objective = {"guide": str(teacher), "guide_margin": 0.02, "guide_margin_kind": kind}
    config = validate(
        {
            "encoder": {"name": str(tiny), "dropout": 0.0},
            "data": {"form": "pairs"},
            "objective": objective,
        },
        "test",
    )
    model, guide = encoder.build(config.encoder), SentenceTransformer(str(teacher))
    texts = [[f"{text} {word}" for text in SENTENCES] for word in ("One.", "Two.", "Three.")]
    texts = texts[:columns]
    peer = GISTEmbedLoss(model, guide, 0.05, kind, 0.02, False, False)
    expected = peer([model.preprocess(column) for column in texts], None)

    ids = [model.tokenizer(column)["input_ids"] for column in texts]
    guided = guide.encode([text for column in texts for text in column])
    hashes = np.arange(6 * columns).reshape(columns, 6)
    rows = [
        {"input_ids": [i[row] for i in ids], "text_hash": hashes[:, row].tolist(), "label": 0}
        for row in range(6)
    ]
    features = ViewCollator(0, lookups={"guide": guided.__getitem__}).features(rows, model.device)
    found = loss_of(TrainingLoss(model, config), features)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    mask = guide_mask(features["guide"], 0.02, kind)
    assert 0 < mask.sum() < 6 * 6 * (columns - 1) - 6  # some are left out, not all
    del features["guide"]
    assert not torch.isclose(loss_of(TrainingLoss(model, config), features), expected)


def test_a_guide_sees_every_text_of_every_set_once(arguments, run, teacher, triplets, capsys):
    text = Path(arguments[1]).read_text()
    data = re.search(r"data: (.*)", text)[1]
    both = text.replace(data, f"[{data}, {{train: '{triplets}', form: pairs}}]")
    Path(arguments[1]).write_text(both)
    words = [*arguments, f"objective.guide={teacher}", f"data.0.cache={run.with_name('cache')}"]
    words += ["objective.guide_margin=0.1", "training.steps=null", "data.1.max_rows=32"]
    words += ["evaluation.every=100"]
    assert main(words) == 0, capsys.readouterr().err
    # 96 sentences and 32 triplets, in one epoch.
    assert f"guide    {teacher}: embedding 192 texts, 48 wide" in capsys.readouterr().out
    start = json.loads((run / "environment.json").read_text())["start"]
    [path] = run.with_name("cache").glob("*.npy")
    assert start["guide"] == path.stem and np.load(path).shape == (192, 48)


def test_a_student_is_turned_to_where_its_teacher_is(tiny, teacher):
    config = validate(
        {
            "encoder": {"name": str(tiny), "dropout": 0.0},
            "data": {"form": "sentences"},
            "objective": {"terms": "distill_l2", "teacher": str(teacher)},
        },
        "test",
    )
    model = encoder.build(config.encoder)
    taught = SentenceTransformer(str(teacher)).encode(SENTENCES, convert_to_tensor=True)
    loss = TrainingLoss(model, config, taught.shape[1])
    features = batch_of(model, SENTENCES, single=True) | {"teacher": taught[None]}
    before = float(loss_of(loss, features).detach())
    loss.start_from(features)
    assert float(loss_of(loss, features).detach()) < before
    [(_, _, term)] = loss.objective.named
    torch.testing.assert_close(term.to_teacher.T @ term.to_teacher, torch.eye(32))
    assert not list(term.parameters())  # cosines are to be the teacher's, not the map's


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["objective.terms=mlm", "encoder.projection=none", "encoder.name={no_head}"],
            "mlm needs an encoder with a masked",
        ),
        (
            ["objective.terms=mlm", "encoder.projection=none"],
            "mask token; {tiny}: its files lack cls.predictions.bias, cls.",
        ),
        (
            ["objective.terms=mlm", "encoder.projection=none", "encoder.name={no_mask}"],
            "mask token; {no_mask}: This tokenizer does not have a mask token",
        ),
        (
            ["objective.terms=sup_con", "data.form=labelled", "objective.guide=x"],
            "objective.guide has no meaning without a term such as clip or decoupled or info_nce",
        ),
        (["objective.guide=x", "data.form=documents"], "objective.guide needs texts that stay"),
        (["objective.guide=/no/guide"], "objective.guide: /no/guide is neither a model folder"),
        (
            ["objective.terms=distill_l2", "objective.teacher=/no/teacher"],
            "objective.teacher: /no/teacher is neither a model folder",
        ),
        (
            ["data.train={triplets}", "data.form=pairs", "objective.terms=clip"],
            "clip does not use the hard negatives of {triplets}",
        ),
        (
            ["objective.terms={info_nce: {hard_negative_weight: 2.0}}"],
            "objective.terms.info_nce.hard_negative_weight has no meaning: the rows of data.train",
        ),
        (
            ["data.train={single}", "data.form=labelled", "objective.terms=sup_con"],
            "data.train: the labels of {single} with two examples or more make no batch of 8",
        ),
        (
            ["views=[{}, {template: '" + "word " * 60 + "{}'}]"],
            "views: with prompt, template and repeated words, texts of data.max_length 32 have "
            "up to 92",
        ),
        (
            ["data.max_length=64", "views=[{}, {repeat: 0.5}]"],
            "texts of data.max_length 64 have up to 95 tokens",
        ),
        (
            ["data.train={one_label}", "data.form=labelled"],
            "data.train: all rows of {one_label} have one label, so there are no negatives",
        ),
        (
            ["data.train={single}", "data.form=labelled", "training.batch_size=2"],
            "training.batch_size: 2 rows are one labelled pair",
        ),
        (
            ["data.train={nli}", "data.form=nli", "objective.terms=clip", "training.batch_size=2"],
            "hard negatives of {nli}; use decoupled or info_nce",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    words, expected, arguments, run, triplets, tiny, masked, tmp_path, capsys
):
    single = write(tmp_path / "l.csv", ["text,label", *(f"t{i},{i}" for i in range(40))])
    one_label = write(tmp_path / "o.csv", ["text,label", *(f"t{i},1" for i in range(40))])
    nli = [f"p{i},{label}{i},{label}" for i in range(4) for label in ("entailment", "c")]
    nli = write(tmp_path / "n.csv", ["premise,hypothesis,label", *nli])
    no_head = make_encoder(tmp_path / "t5", "t5")
    places = {"{triplets}": triplets, "{single}": single, "{no_head}": no_head}
    places |= {"{one_label}": one_label, "{nli}": nli, "{tiny}": tiny, "{no_mask}": masked}
    filled = [*words, expected]
    for place, value in places.items():
        filled = [word.replace(place, str(value)) for word in filled]
    *filled, expected = filled
    tokens = masked / "tokenizer_config.json"
    tokens.write_text(tokens.read_text().replace('"mask_token"', '"no_mask_token"'))
    capsys.readouterr()  # progress bars of the library, saving the encoders above
    assert main([*arguments, *filled]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert not run.exists()


def test_prototype_collapse_is_named_while_it_trains(arguments, run, capsys):
    # A teacher as soft as this spreads every text over all prototypes.
    words = ["objective.terms=dino", "objective.terms.dino.teacher_temperature=50"]
    words.append("objective.terms.dino.student_temperature=50")
    assert main([*arguments, *words]) == 0
    output = capsys.readouterr().out
    assert output.count("step 1: the teacher's prototypes have collapsed: every text takes") == 1
    [first, *_] = [entry for entry in log(run) if "loss" in entry]
    assert first["dino_sharpness"] < 0.01 and first["dino_diversity"] > 0.99
