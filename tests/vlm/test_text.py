"""Texts as bytes."""

import pytest
import torch

from embodied_rl.policies.vlm.text import from_bytes, to_bytes


def test_texts_come_back():
    texts = ["", "yes", "zwölf Bäume", "三 🌳"]
    rows = to_bytes(texts, width=40)
    assert rows.dtype == torch.uint8 and rows.shape == (4, 40)
    assert from_bytes(rows) == texts


@pytest.mark.parametrize("width", range(12))
def test_a_long_text_is_cut_between_characters(width):
    cut = from_bytes(to_bytes(["aö三🌳b"], width=width))[0]
    assert "aö三🌳b".startswith(cut) and "�" not in cut
    assert len(cut.encode()) <= width
    following = "aö三🌳b"[: len(cut) + 1]
    assert following == cut or len(following.encode()) > width


def test_a_nul_is_left_out_since_it_would_end_the_text():
    assert from_bytes(to_bytes(["a\0b"], width=4)) == ["ab"]
