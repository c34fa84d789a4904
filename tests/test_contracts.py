"""What this project relies on beyond what the libraries document, each by name.

A release that changes one of these fails here, and says which. What is documented is tested where
it is used.
"""

import inspect
import json
from contextlib import nullcontext

import datasets
import mteb
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import SENTENCES, make_encoder, make_masked_encoder
from datasets import Dataset
from huggingface_hub import get_cached_repo_tree, get_session
from huggingface_hub.utils import validate_repo_id
from mteb.abstasks.sts import AbsTaskSTS
from mteb.get_tasks import TASK_LIST
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, WeightedLayerPooling
from torch import distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    MODEL_MAPPING,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput


def altered(folder, change):
    """Rewrite the weights of a saved encoder."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


# transformers


def test_transformers_loading_info_names_missing_unexpected_and_mismatched_weights(tmp_path):
    def change(weights):
        del weights["encoder.layer.0.output.dense.bias"]
        weights["encoder.layer.0.extra"] = torch.zeros(2)
        weights["encoder.layer.1.output.dense.bias"] = torch.zeros(7)

    folder = altered(make_encoder(tmp_path), change)
    _, info = AutoModel.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True
    )
    assert info["missing_keys"] == {"encoder.layer.0.output.dense.bias"}
    assert set(info["unexpected_keys"]) == {"encoder.layer.0.extra"}
    [(key, *_)] = info["mismatched_keys"]
    assert key == "encoder.layer.1.output.dense.bias"


def test_transformers_from_pretrained_is_one_class_method_that_every_auto_class_calls(tiny):
    """The gate stands there."""
    assert isinstance(PreTrainedModel.__dict__["from_pretrained"], classmethod)
    assert "from_pretrained" not in BertModel.__dict__
    original, called = PreTrainedModel.__dict__["from_pretrained"], []

    def spy(cls, *arguments, **settings):
        called.append(cls.__name__)
        return original.__func__(cls, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "from_pretrained", classmethod(spy))
        AutoModel.from_pretrained(tiny)
        Transformer(str(tiny))
    assert called == ["BertModel", "BertModel"]


def test_transformers_models_with_an_optional_pooler_say_so_in_their_signature(tiny):
    assert "add_pooling_layer" in inspect.signature(BertModel.__init__).parameters
    assert MODEL_MAPPING[BertConfig] is BertModel
    assert AutoModel.from_pretrained(tiny, add_pooling_layer=False).pooler is None


def test_transformers_key_mapping_renames_weights(tmp_path):
    def change(weights):
        for part in ("weight", "bias"):
            weights[f"mlp.dense.{part}"] = weights.pop(f"pooler.dense.{part}")

    folder = altered(make_encoder(tmp_path), change)
    _, info = AutoModel.from_pretrained(
        folder, key_mapping={r"^mlp\.dense\.": "pooler.dense."}, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_transformers_head_of_a_masked_language_model_takes_states_from_a_stand_in(tmp_path):
    class Given(nn.Module):
        def forward(self, *args, **kwargs):
            return BaseModelOutput(last_hidden_state=states)

    full = AutoModelForMaskedLM.from_pretrained(make_masked_encoder(tmp_path)).eval()
    ids = torch.tensor([[2, 100, 101, 3]])
    states = getattr(full, full.base_model_prefix)(ids).last_hidden_state
    expected = full(ids).logits
    setattr(full, full.base_model_prefix, Given())
    assert torch.equal(full(ids).logits, expected)


def test_transformers_collator_masks_a_batch_and_labels_the_rest_as_ignored(tiny):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    ids = torch.arange(100, 500).view(1, -1)
    keep = torch.zeros_like(ids)
    keep[:, :200] = 1
    torch.manual_seed(0)
    masked, labels = collator.torch_mask_tokens(ids.clone(), special_tokens_mask=keep.bool())
    assert bool((labels[:, :200] == -100).all())
    assert torch.equal(masked[:, :200], ids[:, :200])
    chosen = labels != -100
    assert 0.3 < float(chosen[:, 200:].float().mean()) < 0.7
    assert torch.equal(labels[chosen], ids[chosen])


def test_transformers_activation_checkpointing_repeats_layers_within_our_context(tiny):
    entered = []

    def contexts():
        entered.append("contexts")
        return nullcontext(), nullcontext()

    network = AutoModel.from_pretrained(tiny).train()
    network.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    network(torch.tensor([[2, 100, 3]])).last_hidden_state.sum().backward()
    assert len(entered) == network.config.num_hidden_layers


def test_transformers_config_as_a_mapping_leaves_out_how_attention_is_computed(tiny):
    network = AutoModel.from_pretrained(tiny)
    network.set_attn_implementation("eager")
    assert not [key for key in network.config.to_dict() if "attn_implementation" in key]


def test_transformers_dropout_of_attention_is_read_anew_in_every_pass(tiny):
    """A view's rate is set there for a pass: without dropout two passes agree."""
    network = AutoModel.from_pretrained(tiny).train()
    ids = torch.tensor([[2, 100, 101, 3]])
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    first, second = (network(ids).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)


def test_transformers_fast_tokenizer_maps_parts_of_long_texts_to_their_texts_in_order(tiny):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    found = tokenizer(
        ["one", "a b c d e f g h", "two"],
        truncation=True,
        max_length=6,
        return_overflowing_tokens=True,
    )
    assert found["overflow_to_sample_mapping"] == [0, 1, 1, 2]


def test_tokenizers_serialise_the_length_of_the_last_call(tiny):
    """Why the fingerprint and the cache's name leave it out."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    before = backend.to_str()
    tokenizer(["a text", "another one"], padding=True, truncation=True, max_length=5)
    after = json.loads(backend.to_str())
    assert after != json.loads(before)
    assert {key for key, value in json.loads(before).items() if after[key] != value} <= {
        "truncation",
        "padding",
    }


# sentence-transformers


def stock(tiny, *modules):
    transformer = Transformer(str(tiny))
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean"), *modules])


def test_sentence_transformers_dense_can_write_an_output_that_encode_ignores(tiny):
    torch.manual_seed(0)
    model = stock(tiny)
    plain = model.encode(SENTENCES)
    model.append(Dense(32, 32, module_output_name="train_embedding"))
    tokens = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    output = model(dict(tokens))
    assert {"sentence_embedding", "train_embedding"} <= output.keys()
    assert not torch.allclose(output["sentence_embedding"], output["train_embedding"], atol=1e-3)
    assert (model.encode(SENTENCES) == plain).all()


def test_sentence_transformers_router_has_its_routes_by_name(tiny):
    model = stock(tiny)
    modules = list(model.children())
    router = Router.for_query_document(modules, list(stock(tiny)), default_route="query")
    assert list(router.sub_modules) == ["query", "document"]
    assert isinstance(router.sub_modules["query"][0], Transformer)


def test_sentence_transformers_transformer_says_what_it_takes_and_gives(tiny):
    transformer = Transformer(str(tiny))
    assert isinstance(transformer.model, PreTrainedModel)
    assert "text" in transformer.modality_config
    assert "pooler_output" not in str(transformer.modality_config)
    assert not transformer.can_flatten_inputs


def test_sentence_transformers_settings_on_disk_are_those_that_the_layout_rewrites(tiny, tmp_path):
    model = stock(tiny, Dense(32, 32))
    model.insert(1, WeightedLayerPooling(32, num_hidden_layers=3))
    model.save_pretrained(str(tmp_path), create_model_card=False)
    entries = json.loads((tmp_path / "modules.json").read_text())
    assert [entry["type"].rpartition(".")[2] for entry in entries] == [
        "Transformer",
        "WeightedLayerPooling",
        "Pooling",
        "Dense",
    ]
    assert all(entry["type"].startswith("sentence_transformers.") for entry in entries)
    weighted, pooling, dense = (
        json.loads((tmp_path / entry["path"] / "config.json").read_text()) for entry in entries[1:]
    )
    assert {"pooling_mode", "embedding_dimension"} <= pooling.keys()
    assert "embedding_dimension" in weighted
    assert {"in_features", "out_features", "bias", "activation_function"} <= dense.keys()
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    assert settings["module_output_name"] == "token_embeddings"
    assert settings["transformer_task"] == "feature-extraction"


# accelerate


def test_accelerate_forgets_the_precision_of_an_earlier_run_when_reset():
    AcceleratorState._reset_state()
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    assert accelerator.mixed_precision == "no"
    assert accelerator.scaler is None


def test_accelerate_prepared_optimiser_keeps_parameters_and_says_whether_it_stepped():
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True)
    weight = nn.Parameter(torch.ones(2))
    plain = torch.optim.SGD([weight], lr=1.0)
    prepared = accelerator.prepare_optimizer(plain)
    assert prepared.optimizer is plain
    weight.grad = torch.ones(2)
    prepared.step()
    assert not prepared.step_was_skipped
    assert torch.equal(weight.detach(), torch.zeros(2))


# datasets


def test_datasets_fingerprint_is_that_of_the_content_and_not_of_the_moment(tmp_path):
    """A data set of the Hub is identified by it in the name of the tokenised cache."""

    def loaded(cache):
        return datasets.load_dataset(
            str(tmp_path / "text"), split="train", cache_dir=str(tmp_path / cache)
        )

    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.csv").write_text("text\none\ntwo\n")
    first, again = loaded("a"), loaded("a")
    assert isinstance(first._fingerprint, str)
    assert first._fingerprint == again._fingerprint
    assert first._fingerprint != first.select([1])._fingerprint


def test_datasets_cache_files_name_the_arrow_file_that_is_mapped(tmp_path):
    Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    [file] = (tmp_path / "saved").glob("*.arrow")
    assert [entry["filename"] for entry in Dataset.from_file(str(file)).cache_files] == [str(file)]


# torch


def test_torch_random_fills_all_64_bits_and_int16_views_share_them():
    torch.manual_seed(0)
    words = torch.empty(100_000, dtype=torch.int64).random_(-(1 << 63), None)
    shares = torch.stack([(words >> bit & 1).double().mean() for bit in range(64)])
    assert float((shares - 0.5).abs().max()) < 0.01
    again = torch.empty_like(words)
    again.view(torch.int16).copy_(words.view(torch.int16))
    assert torch.equal(again, words)


def test_torch_comparison_can_be_written_straight_into_floats():
    out = torch.empty(3)
    torch.ge(torch.tensor([1, 2, 3], dtype=torch.int16), 2, out=out)
    assert out.tolist() == [0.0, 1.0, 1.0]


def test_torch_flop_counter_counts_a_product_within_a_pass():
    counter = FlopCounterMode(display=False)
    with counter:
        torch.randn(3, 4) @ torch.randn(4, 5)
    assert counter.get_total_flops() == 2 * 3 * 4 * 5


def test_torch_failures_of_other_processes_are_runtime_errors():
    assert issubclass(dist.DistError, RuntimeError)


# mteb


def test_mteb_sts_tasks_take_their_text_from_the_data_set_that_is_set():
    task = mteb.get_task("STS13")
    assert isinstance(task, AbsTaskSTS)
    assert not task.data_loaded
    assert task.column_names == ("sentence1", "sentence2")
    assert task.eval_splits == ["test"]
    assert task.metadata.main_score == "cosine_spearman"
    assert len(task.metadata.dataset["revision"]) == 40


def test_mteb_knows_its_tasks_by_their_classes():
    names = {task.metadata.name for task in TASK_LIST}
    assert {"STS13", "STSBenchmark", "SICK-R"} <= names


def test_mteb_wrapper_encodes_batches_of_a_data_loader():
    arguments = list(inspect.signature(SentenceTransformerEncoderWrapper.encode).parameters)
    assert arguments[:2] == ["self", "inputs"]


def test_mteb_keeps_the_size_of_sick():
    samples = mteb.get_task("SICK-R").metadata.descriptive_stats["test"]["num_samples"]
    assert samples == 9927


# huggingface_hub


def test_huggingface_hub_session_runs_our_hook_before_every_request():
    assert isinstance(get_session().event_hooks["request"], list)


def test_huggingface_hub_keeps_a_list_of_the_files_of_a_commit():
    parameters = inspect.signature(get_cached_repo_tree).parameters
    assert {"repo_type", "revision"} <= parameters.keys()


@pytest.mark.parametrize("name", ["user/name", "bert-base-uncased"])
def test_huggingface_hub_accepts_the_names_of_repositories(name):
    validate_repo_id(name)
