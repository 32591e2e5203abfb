"""The paper's benchmarks in small, and a run to evaluate on them."""

import os

import datasets
import pytest
import torch

from ddl.config import ModelConfig, from_mapping
from ddl.data.tokenizer import save_tokenizer, train_bpe
from ddl.evaluation import paper_benchmarks as prefetch
from ddl.evaluation.lm_eval_tasks import prepare_environment
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import save_model
from tests.helpers.benchmark_files import WORDS, local_copies


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Benchmarks that are read from local copies."""
    prepare_environment()
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    return local_copies(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def folder(sources, tmp_path_factory):
    """What `ddl benchmarks` writes, from the local copies."""
    found = tmp_path_factory.mktemp("benchmarks")
    prefetch.prefetch(found, sources)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory, variants):
    """A run folder with weights large enough that predictions differ."""
    path = tmp_path_factory.mktemp("run")
    train_bpe([" ".join(WORDS) + ". Question: Answer: Q: A: Sitting on mats?"], 300).save(str(path / "bpe.json"))
    save_tokenizer(path / "bpe.json", path)
    shape = {"vocab_size": 300, "sequence_length": 128, "layers": 1, "width": 24, "heads": 2}
    model = LanguageModel(from_mapping(ModelConfig, shape | variants["ddl-tc"].model, "test"))
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    save_model(model, path)
    return path
