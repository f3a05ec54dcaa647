"""The Atari games, and what to do in each in one sentence."""

from __future__ import annotations

_NAMES = """
    adventure air_raid alien amidar assault asterix asteroids atlantis atlantis2 backgammon
    bank_heist basic_math battle_zone beam_rider berzerk blackjack bowling boxing breakout carnival
    casino centipede chopper_command crazy_climber crossbow darkchambers defender demon_attack
    donkey_kong double_dunk earthworld elevator_action enduro entombed et fishing_derby flag_capture
    freeway frogger frostbite galaxian gopher gravitar hangman haunted_house hero human_cannonball
    ice_hockey jamesbond journey_escape kaboom kangaroo keystone_kapers king_kong klax koolaid krull
    kung_fu_master laser_gates lost_luggage mario_bros miniature_golf montezuma_revenge mr_do
    ms_pacman name_this_game othello pacman phoenix pitfall pitfall2 pong pooyan private_eye qbert
    riverraid road_runner robotank seaquest sir_lancelot skiing solaris space_invaders space_war
    star_gunner superman surround tennis tetris tic_tac_toe_3d time_pilot trondead turmoil tutankham
    up_n_down venture video_checkers video_chess video_cube video_pinball wizard_of_wor word_zapper
    yars_revenge zaxxon
"""
GAMES: tuple[str, ...] = tuple(_NAMES.split())
"""The games of ale-py 0.12 that one player can play."""

INSTRUCTIONS: dict[str, str] = {
    "alien": "collect all eggs in the corridors of the ship and avoid the aliens",
    "amidar": "walk along every side of the boxes and avoid the warriors",
    "assault": "shoot the drones that the mother ship drops and do not let your gun overheat",
    "asterix": "collect the objects that pass by and avoid the lyres",
    "asteroids": "shoot the asteroids and the saucers without being hit by them",
    "atlantis": "shoot the ships before they destroy the city",
    "bank_heist": "rob the banks of the maze before the fuel runs out and avoid the police",
    "battle_zone": "find the enemy tanks and shoot them before they shoot you",
    "beam_rider": "clear the beams of enemy ships",
    "berzerk": "shoot the robots and leave the room without touching walls",
    "bowling": "roll the ball so that it knocks down as many pins as possible",
    "boxing": "punch the other boxer more often than he punches you",
    "breakout": "keep the ball in play with the paddle and break all bricks",
    "centipede": "shoot the centipede before it reaches the bottom",
    "chopper_command": "protect the trucks and shoot the enemy aircraft",
    "crazy_climber": "climb to the top of the building and avoid closing windows",
    "defender": "shoot the landers and protect the humans",
    "demon_attack": "shoot the demons and avoid their shots",
    "enduro": "overtake as many cars as each day demands",
    "fishing_derby": "catch more fish than the other angler and keep them from the shark",
    "freeway": "lead the chicken across the road as often as possible",
    "frogger": "lead the frog across the road and the river into its home",
    "frostbite": "jump on the ice floes to build the igloo and enter it before it is too cold",
    "gopher": "fill the holes and keep the gopher from the carrots",
    "hero": "reach the trapped miners through the shafts before the power runs out",
    "ice_hockey": "shoot more goals than the other team",
    "jamesbond": "drive on, shoot what comes and avoid being hit",
    "kangaroo": "climb to the young kangaroo and avoid the monkeys",
    "kung_fu_master": "fight through the floors of the temple to the end",
    "montezuma_revenge": "take the key, open the doors and explore the rooms without falling",
    "ms_pacman": "eat all dots in the maze and avoid the ghosts unless they are blue",
    "pacman": "eat all dots in the maze and avoid the ghosts unless they are blue",
    "phoenix": "shoot the birds and then the ship behind them",
    "pitfall": "collect the treasures of the jungle and avoid pits, logs and animals",
    "pong": "hit the ball past the opponent's paddle and do not miss it yourself",
    "private_eye": "find the stolen things and bring them back",
    "qbert": "hop on every cube to change its colour and avoid what chases you",
    "riverraid": "fly up the river, shoot what is in the way and refuel in time",
    "road_runner": "run from the coyote and pick up the seeds",
    "robotank": "shoot the enemy tanks before they destroy yours",
    "seaquest": "shoot sharks and submarines, rescue the divers and surface before the air is gone",
    "skiing": "ski down through all gates as fast as possible",
    "space_invaders": "shoot the invaders before they reach the ground",
    "star_gunner": "shoot everything that flies and avoid being hit",
    "tennis": "return the ball so that the opponent misses it",
    "tetris": "complete lines with the falling pieces",
    "time_pilot": "shoot the aircraft of every age",
    "tutankham": "find the treasures of the tomb and shoot its guardians",
    "up_n_down": "drive over all flags and jump over the other cars",
    "venture": "take the treasure of every room and avoid its monsters",
    "video_pinball": "keep the ball in play and hit the bumpers",
    "wizard_of_wor": "shoot the monsters of the maze before they reach you",
    "yars_revenge": "break through the shield and destroy the enemy behind it",
    "zaxxon": "fly through the fortress at the right height and shoot its targets",
}


def instruction(game: str) -> str:
    """One sentence; for a game without one of its own, to score points."""
    return INSTRUCTIONS.get(game, f"play {game.replace('_', ' ')} and score as much as possible")
