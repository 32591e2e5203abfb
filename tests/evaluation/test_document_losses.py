"""Losses by document: every token counts for the document that it belongs to."""

import torch

from ddl.evaluation.document_losses import DocumentLosses, per_document


def test_a_document_begins_at_its_first_token_and_sums_its_own_losses():
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    starts = torch.tensor([False, False, True, False, True])  # the split begins within the first document
    found = per_document(losses, starts)
    assert found.losses.tolist() == [3.0, 12.0, 16.0]
    assert found.tokens.tolist() == [2, 2, 1]


def test_what_is_saved_is_read_back(tmp_path):
    documents = DocumentLosses(torch.tensor([1.5, 2.5]), torch.tensor([3, 4], dtype=torch.int32))
    documents.save(tmp_path / "documents.safetensors")
    found = DocumentLosses.load(tmp_path / "documents.safetensors")
    assert torch.equal(found.losses, documents.losses)
    assert torch.equal(found.tokens, documents.tokens)
