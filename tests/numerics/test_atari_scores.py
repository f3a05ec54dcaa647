from __future__ import annotations

import pytest

from embodied_rl.envs.atari_games import GAMES, INSTRUCTIONS, instruction
from embodied_rl.envs.atari_scores import (
    ATARI_57,
    evaluation_scores,
    human_normalized,
    published_scores,
)


@pytest.mark.parametrize("game", sorted(ATARI_57))
def test_random_is_0_human_is_1_and_between_is_linear(game: str) -> None:
    random, human = published_scores(game)
    assert human_normalized(random, game) == 0.0
    assert human_normalized(human, game) == pytest.approx(1.0)
    assert human_normalized((random + human) / 2, game) == pytest.approx(0.5)
    assert human_normalized(2 * human - random, game) == pytest.approx(2.0)


def test_a_perfect_game_of_pong_is_118_percent() -> None:
    # 41.7 points above random play, where the human is 35.3 above it.
    assert human_normalized(21.0, "pong") == pytest.approx(1.1813, abs=1e-4)


def test_the_table_has_the_57_games_of_the_benchmark() -> None:
    assert len(ATARI_57) == 57 and set(ATARI_57) < set(GAMES)
    assert all(random < human for random, human in ATARI_57.values())
    # Sums of the printed columns, taken from the table by another program.
    random, human = (sum(column) for column in zip(*ATARI_57.values(), strict=True))
    assert (round(random, 1), round(human, 1)) == (50864.9, 606494.2)


def test_no_human_score_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"no human score of 'pongg'.*did you mean 'pong'"):
        human_normalized(3.0, "pongg")
    with pytest.raises(ValueError, match="57 games"):
        human_normalized(3.0, "tetris")


def test_only_full_scores_of_whole_games_are_normalised() -> None:
    whole = {"game": "pong", "clip_rewards": False, "terminal_on_life_loss": False}
    assert evaluation_scores(whole, 14.6) == {"human_normalized": pytest.approx(1.0)}
    assert evaluation_scores(whole | {"clip_rewards": True}, 14.6) == {}
    assert evaluation_scores(whole | {"terminal_on_life_loss": True}, 14.6) == {}
    assert evaluation_scores(whole | {"game": "tetris"}, 14.6) == {}


def test_every_game_has_an_instruction() -> None:
    assert set(INSTRUCTIONS) < set(GAMES)
    assert all(len(instruction(game)) > 10 for game in GAMES)
