"""Log-likelihoods agree with one request at a time and with the harness's adapter; prefixes are shared."""

import random

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import ddl.evaluation.loglikelihood
import ddl.model.transformers_model  # registers with AutoModelForCausalLM
from ddl.data.tokenizer import END_OF_TEXT, load_tokenizer, save_tokenizer, train_bpe
from ddl.evaluation.lm_eval_model import DDL, load
from ddl.evaluation.loglikelihood import Group, OwnModel, Scorer, ScoringError, grade, group_inputs
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import ModelFileError, save_model

VOCABULARY, LENGTH = 290, 48
WORDS = "return the value shape dtype of an array that holds all rows and columns, in order".split()  # noqa: SIM905
CPU = torch.device("cpu")


def spread(model):
    """The model in evaluation mode, with weights large enough that its predictions differ."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def naive(model, context, continuation):
    """Score one request on its own, with one forward pass over the whole prefix for each token of the continuation."""
    total, greedy = 0.0, True
    length = model.config.sequence_length
    for position, token in enumerate(continuation):
        prefix = (context + continuation[:position])[-(length - len(continuation) + 1 + position) :]
        with torch.no_grad():
            log_p = model(torch.tensor([prefix]))[0, -1].double().log_softmax(0)
        total += float(log_p[token])
        greedy &= int(log_p.argmax()) == token
    return total, greedy


def assert_same(found, expected):
    """Compare scores to 1e-5 nats, or to 1e-6 of a large score, which is what fp32 resolves."""
    assert len(found) == len(expected)
    for (score, greedy), (expected_score, expected_greedy) in zip(found, expected, strict=True):
        assert score == pytest.approx(expected_score, abs=1e-5, rel=1e-6)
        assert greedy == expected_greedy


@pytest.fixture
def requests():
    """Questions with several answers, some with common beginnings or other splits, and requests that are too long."""
    rng = random.Random(0)

    def draw(low, high):
        return [rng.randrange(61) for _ in range(rng.randrange(low, high))]

    pairs = []
    for _ in range(5):
        context, stem = draw(1, 14), draw(0, 3)
        answers = [stem + draw(1, 3) for _ in range(4)]
        pairs += [(context, answer) for answer in answers]
        pairs.append((context, [*answers[0][:-1], (answers[0][-1] + 1) % 61]))  # the same input, another last target
        whole = context + answers[1]
        pairs += [(whole[:split], whole[split:]) for split in range(1, len(whole)) if len(whole) - split <= 16]
    pairs += [(draw(30, 40), draw(1, 16)) for _ in range(4)]
    for _ in range(4):  # equal lengths, so that a batch holds several questions
        context = draw(10, 11)
        pairs += [(context, draw(3, 4)) for _ in range(4)]
    rng.shuffle(pairs)
    return pairs


@pytest.mark.parametrize("variant", ["baseline", "ddl-cc", "ddl-tc"])
def test_scores_agree_with_one_request_at_a_time(tiny_config, requests, variant, monkeypatch):
    monkeypatch.setattr(ddl.evaluation.loglikelihood, "SHORTEST_PREFIX", 2)
    model = spread(LanguageModel(tiny_config(variant)))
    expected = [naive(model, *pair) for pair in requests]
    assert len({round(score, 3) for score, _ in expected}) > 50
    for share in (True, False):
        for batch_tokens in (1, 64, 4096):
            assert_same(Scorer(OwnModel(model), batch_tokens, share).score(requests), expected)


def test_a_shared_prefix_is_read_once(tiny_config):
    model = spread(LanguageModel(tiny_config("ddl-tc")))
    tokens = []
    hidden = model.hidden
    model.hidden = lambda ids, real=None, cache=None: tokens.append(ids.numel()) or hidden(ids, real, cache)
    context = list(range(10))
    pairs = [(context, [answer, 60]) for answer in range(20, 24)]
    shared = Scorer(OwnModel(model), 4096).score(pairs)
    assert sum(tokens) == 9 + 4 * 2  # the last token of the context is read with every answer
    tokens.clear()
    assert_same(shared, Scorer(OwnModel(model), 4096, share=False).score(pairs))
    assert sum(tokens) == 4 * 11


def test_groups_save_the_most_tokens():
    a, b = tuple(range(20)), tuple(range(100, 120))
    inputs = {(*a, 1): 20, (*a, 2): 20, (*b, 1): 20, (*b, 2, 3): 20, (*b[:9], 7): 9, (50,): 0}
    found = sorted((group.prefix, len(group.inputs)) for group in group_inputs(inputs))
    assert found == [(0, 1), (0, 1), (20, 2), (20, 2)]  # all three inputs with b would share only nine tokens
    assert group_inputs({(1, 2): 0}) == [Group(0, ((1, 2),))]
    assert group_inputs({}) == []


def test_a_batch_holds_inputs_of_similar_length(tiny_config):
    scorer = Scorer(OwnModel(LanguageModel(tiny_config("baseline"))), 100)
    rng = random.Random(0)
    limits = {tuple(rng.randrange(61) for _ in range(rng.randrange(1, 17))): 0 for _ in range(200)}
    groups = group_inputs(limits)
    batches = list(scorer.batches(groups))
    assert sorted(group.inputs for batch in batches for group in batch) == sorted(group.inputs for group in groups)
    padded = [len(batch) * max(group.rest for group in batch) for batch in batches]
    assert max(padded) <= 100
    assert sum(padded) < 1.15 * sum(map(len, limits))
    assert len(batches) < 30
    assert list(scorer.batches(groups[::-1])) == batches
    assert grade(0) < grade(8) <= grade(9) < grade(12)


def test_greedy_continuations_are_recognised(tiny_config):
    model = spread(LanguageModel(tiny_config("baseline")))
    tokens = [5]
    with torch.no_grad():
        for _ in range(4):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    wrong = [*tokens[1:4], (tokens[4] + 1) % 61]
    found = Scorer(OwnModel(model), 64).score([(tokens[:1], tokens[1:]), (tokens[:1], wrong)])
    assert [greedy for _, greedy in found] == [True, False]


def test_long_prompts_lose_their_left_end(tiny_config):
    scorer = Scorer(OwnModel(spread(LanguageModel(tiny_config("ddl-cc")))), 64)
    tokens = [index % 61 for index in range(40)]
    long, short, shorter = scorer.score(
        [(tokens[:37], tokens[37:]), (tokens[23:37], tokens[37:]), (tokens[24:37], tokens[37:])]
    )
    assert long == short  # 17 tokens: 16 input tokens and the last target
    assert long != shorter


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), ([1], [1] * 17)], ids=["no context", "nothing", "too long"])
def test_requests_that_cannot_be_scored_are_refused(tiny_config, pair):
    scorer = Scorer(OwnModel(LanguageModel(tiny_config("baseline"))), 64)
    with pytest.raises(ScoringError, match="request 0: expected some context and 1 to 16 tokens of continuation"):
        scorer.score([pair])


# ---------------------------------------------------------------------------------------------------------------------
# Models in folders, and the harness


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe([" ".join(WORDS)], VOCABULARY).save(str(path))
    return path


def a_run(folder, variant, tiny_config, tokenizer, **settings):
    config = tiny_config(variant, vocab_size=VOCABULARY, sequence_length=LENGTH, **settings)
    save_model(spread(LanguageModel(config)), folder)
    save_tokenizer(tokenizer, folder)
    return folder


def texts():
    """Harness requests with four choices per question; some contexts are empty, some too long."""
    rng = random.Random(1)

    def words(low, high):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(low, high)))

    pairs = []
    for index in range(24):
        context = "" if index % 8 == 0 else words(40, 60) if index % 8 == 1 else words(1, 12)
        pairs += [(context, f" {words(1, 5)}") for _ in range(4)]
    return [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]


@pytest.mark.parametrize("variant", ["baseline", "ddl-tc"])
def test_scores_agree_with_the_harness_own_adapter(tiny_config, tokenizer, tmp_path, variant):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs accelerate", exc_type=ImportError)
    folder = a_run(tmp_path, variant, tiny_config, tokenizer)
    theirs = huggingface.HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        batch_size=32,
        device="cpu",
        max_length=LENGTH,
        logits_cache=False,  # this cache confuses requests that split the same input at different places
    )
    expected = theirs.loglikelihood(texts(), disable_tqdm=True)
    assert_same(DDL(folder, device="cpu").loglikelihood(texts(), disable_tqdm=True), expected)
    text = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(" ".join(WORDS * 6),), idx=0)]
    rolling = theirs.loglikelihood_rolling(text, disable_tqdm=True)
    assert DDL(folder, device="cpu").loglikelihood_rolling(text, disable_tqdm=True) == pytest.approx(rolling, rel=1e-6)


def test_an_empty_prompt_becomes_the_end_of_text_token(tiny_config, tokenizer, tmp_path):
    folder = a_run(tmp_path, "ddl-cc", tiny_config, tokenizer)
    model, encode, end, begin = load(folder, None, CPU)
    assert end == begin == load_tokenizer(tokenizer).token_to_id(END_OF_TEXT)
    request = Instance(request_type="loglikelihood", doc={}, arguments=("", " the value"), idx=0)
    expected = naive(model.model, [end], encode(" the value"))
    assert_same(DDL(folder, device="cpu").loglikelihood([request], disable_tqdm=True), [expected])


def test_a_bf16_folder_is_scored_in_fp32(tiny_config, tokenizer, tmp_path):
    folder = a_run(tmp_path / "fp32", "ddl-tc", tiny_config, tokenizer)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "bf16")
    save_tokenizer(tokenizer, tmp_path / "bf16")
    model, *_ = load(tmp_path / "bf16", None, CPU)
    assert {weight.dtype for weight in model.model.parameters()} == {torch.float32}
    expected = [naive(model.model, [1, 2, 3], [4, 5])]
    assert_same(Scorer(model, 64).score([([1, 2, 3], [4, 5])]), expected)


def test_any_causal_model_of_transformers_is_scored(tokenizer, tmp_path):
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=24, n_layer=2, n_head=2)
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    lm = DDL(tmp_path, device="cpu")
    assert lm.scorer.model.model.dtype == torch.float32
    found = lm.loglikelihood(texts()[4:], disable_tqdm=True)
    for request, (score, _) in zip(texts()[8:12], found[4:8], strict=True):
        context, continuation = (lm.tok_encode(text) for text in request.args)
        with torch.no_grad():
            log_p = lm.scorer.model.model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
        where = torch.arange(len(context) - 1, len(context) + len(continuation) - 1)
        assert score == pytest.approx(float(log_p[where, torch.tensor(continuation)].sum()), abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("text", [None, "[]", '{"model_type": "nothing"}'], ids=["absent", "a list", "unknown"])
def test_a_folder_without_a_model_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=tmp_path.name):
        load(tmp_path, None, CPU)
