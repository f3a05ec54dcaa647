"""Runs started in the same second never share a folder."""

from concurrent.futures import ThreadPoolExecutor

from embodied_rl.config import EnvConfig, TrainConfig, component
from embodied_rl.trainer import claim_run_folder


def test_simultaneous_runs_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("embodied_rl.trainer.time.strftime", lambda _: "20260101-000000")
    config = TrainConfig(
        name="same/name",
        env=EnvConfig(simulator=component("envs", "reach")),
        policy=component("policies", "gaussian_mlp"),
        algorithm=component("algorithms", "ppo"),
        runs=str(tmp_path),
    )
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: claim_run_folder(config), range(24)))
    assert len(set(folders)) == 24
    assert all(folder.is_dir() for folder in folders)
    assert folders[0].parent == tmp_path / "same" / "name"
