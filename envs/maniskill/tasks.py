"""ManiSkill's tasks as plain data: instruction, control mode, what an id needs before it runs.

Nothing here imports ManiSkill. ``OFFLINE`` are the ids that run from the installed package alone;
the others need files that ``python -m mani_skill.utils.download_asset`` fetches.
"""

from __future__ import annotations

from collections.abc import Sequence

from embodied_rl.registry import near_names

INSTRUCTIONS: dict[str, str] = {
    # Table top, one arm
    "AssemblingKits-v1": "Put the piece into the hole of its shape.",
    "FMBAssembly1Easy-v1": "Pick up the block and fit it between the others on the board.",
    "InsertFlower-v1": "Put the flower into the vase.",
    "LiftPegUpright-v1": "Stand the peg upright on the table.",
    "PegInsertionSide-v1": "Insert the peg into the hole in the side of the box.",
    "PickClutterYCB-v1": "Pick the marked object out of the clutter and bring it to the goal.",
    "PickCube-v1": "Pick up the cube and hold it at the goal.",
    "PickCubeSO100-v1": "Pick up the cube with the SO-100 arm and hold it at the goal.",
    "PickCubeWidowXAI-v1": "Pick up the cube with the WidowX AI arm and hold it at the goal.",
    "PickSingleYCB-v1": "Pick up the object and hold it at the goal.",
    "PlaceSphere-v1": "Put the ball into the bin.",
    "PlugCharger-v1": "Plug the charger into the receptacle.",
    "PokeCube-v1": "Pick up the peg and poke the cube to the goal with it.",
    "PullCube-v1": "Pull the cube to the target on the table.",
    "PullCubeTool-v1": "Pick up the tool and pull the cube nearer with it.",
    "PushCube-v1": "Push the cube to the target on the table.",
    "PushT-v1": "Push the T-shaped block onto its outline.",
    "RollBall-v1": "Roll the ball to the target.",
    "SO100GraspCube-v1": "Grasp the cube, lift it and go back to rest.",
    "StackCube-v1": "Put the red cube on the green cube.",
    "StackPyramid-v1": "Put two cubes side by side and the third on top of them.",
    "TurnFaucet-v1": "Turn on the faucet.",
    # Two arms
    "TwoRobotPickCube-v1": "Pass the cube to the other arm, which holds it at the goal.",
    "TwoRobotStackCube-v1": "Put the green cube on the target and the blue cube on top of it.",
    # Drawing
    "DrawSVG-v1": "Trace the drawing on the canvas.",
    "DrawTriangle-v1": "Trace the triangle on the canvas.",
    "TableTopFreeDraw-v1": "Draw on the canvas.",
    # Hands
    **{
        f"RotateSingleObjectInHandLevel{level}-v1": "Turn the object in the hand about its axis."
        for level in range(4)
    },
    **{f"RotateValveLevel{level}-v1": "Turn the valve with the fingers." for level in range(5)},
    **{
        f"TriFingerRotateCubeLevel{level}-v1": "Bring the cube to the goal pose with three fingers."
        for level in range(5)
    },
    # Control
    "MS-AntRun-v1": "Run forward with the ant.",
    "MS-AntWalk-v1": "Walk forward with the ant.",
    "MS-CartpoleBalance-v1": "Keep the pole upright.",
    "MS-CartpoleSwingUp-v1": "Swing the pole up and keep it upright.",
    "MS-HopperHop-v1": "Hop forward.",
    "MS-HopperStand-v1": "Stand on the foot without falling.",
    "MS-HumanoidRun-v1": "Run with the humanoid.",
    "MS-HumanoidStand-v1": "Stand with the humanoid.",
    "MS-HumanoidWalk-v1": "Walk with the humanoid.",
    # Humanoids and quadrupeds
    "AnymalC-Reach-v1": "Walk to the goal.",
    "AnymalC-Spin-v1": "Spin on the spot.",
    "UnitreeG1PlaceAppleInBowl-v1": "Put the apple into the bowl.",
    "UnitreeG1Stand-v1": "Stand without falling.",
    "UnitreeG1TransportBox-v1": "Carry the box to the other table.",
    "UnitreeGo2-Reach-v1": "Walk to the goal.",
    "UnitreeH1Stand-v1": "Stand without falling.",
    # Mobile manipulation and scenes
    "OpenCabinetDoor-v1": "Open the door of the cabinet.",
    "OpenCabinetDrawer-v1": "Open the drawer of the cabinet.",
    "RoboCasaKitchen-v1": "Work in the kitchen.",
    "SceneManipulation-v1": "Work in the scene.",
    "ArchitecTHOR_SceneManipulation-v1": "Work in the house.",
    "ReplicaCAD_SceneManipulation-v1": "Work in the apartment.",
    **{
        f"ReplicaCAD{task}{split}_SceneManipulation-v1": sentence
        for task, sentence in (
            ("TidyHouse", "Tidy the house."),
            ("PrepareGroceries", "Prepare the groceries."),
            ("SetTable", "Set the table."),
        )
        for split in ("Train", "Val")
    },
    # Digital twins of real setups
    "PutCarrotOnPlateInScene-v1": "Put the carrot on the plate.",
    "PutEggplantInBasketScene-v1": "Put the eggplant into the basket.",
    "PutSpoonOnTableClothInScene-v1": "Put the spoon on the towel.",
    "StackGreenCubeOnYellowCubeBakedTexInScene-v1": "Put the green cube on the yellow cube.",
    # Nothing to do
    "Empty-v1": "Do as you please.",
}
"""Instruction by id."""

NEEDS_PACKAGES = ("DrawSVG-v1",)
"""Ids that need a package ManiSkill does not install (svgpathtools)."""
DOWNLOADS: dict[str, str] = {
    **dict.fromkeys(
        (
            "PickClutterYCB-v1",
            "PickSingleYCB-v1",
            "RotateSingleObjectInHandLevel2-v1",
            "RotateSingleObjectInHandLevel3-v1",
            "AssemblingKits-v1",
            "InsertFlower-v1",
            "OpenCabinetDrawer-v1",
            "TurnFaucet-v1",
            "PutCarrotOnPlateInScene-v1",
            "PutEggplantInBasketScene-v1",
            "PutSpoonOnTableClothInScene-v1",
            "StackGreenCubeOnYellowCubeBakedTexInScene-v1",
        ),
        "",
    ),
    "OpenCabinetDoor-v1": "partnet_mobility_cabinet",
    "PickCubeWidowXAI-v1": "widowxai",
    "UnitreeH1Stand-v1": "unitree_h1",
    "UnitreeGo2-Reach-v1": "unitree_go2",
    "AnymalC-Reach-v1": "anymal_c",
    "AnymalC-Spin-v1": "anymal_c",
    "RoboCasaKitchen-v1": "RoboCasa",
    "ArchitecTHOR_SceneManipulation-v1": "AI2THOR",
    **{
        name: "ReplicaCAD" for name in INSTRUCTIONS if name.startswith(("ReplicaCAD", "SceneManip"))
    },
}
"""What ``download_asset`` has to fetch for an id ("": the id itself is the name to fetch)."""
OFFLINE: tuple[str, ...] = tuple(
    name for name in INSTRUCTIONS if name not in DOWNLOADS and name not in NEEDS_PACKAGES
)

NO_SPARSE_REWARD: dict[str, str] = {
    **dict.fromkeys(
        (
            "MS-AntRun-v1",
            "MS-AntWalk-v1",
            "MS-CartpoleSwingUp-v1",
            "MS-HumanoidRun-v1",
            "MS-HumanoidStand-v1",
            "MS-HumanoidWalk-v1",
        ),
        "normalized_dense",
    ),
    "Empty-v1": "none",
    "TableTopFreeDraw-v1": "none",
}
"""Offline ids without a sparse reward, and the reward to ask for instead."""

_LIMITS: dict[int, tuple[str, ...]] = {
    60: ("PutCarrotOnPlate", "PutSpoonOnTableCloth", "StackGreenCube"),
    64: ("SO100GraspCube",),
    80: ("RotateValveLevel0", "RollBall"),
    100: (
        "OpenCabinet",
        "PegInsertionSide",
        "PickClutter",
        "PullCubeTool",
        "PushT",
        "RoboCasaKitchen",
        "TwoRobot",
        "UnitreeG1PlaceApple",
        "UnitreeG1Transport",
    ),
    120: ("PutEggplant",),
    150: ("RotateValveLevel1", "RotateValveLevel2", "RotateValveLevel3"),
    200: (
        "AnymalC",
        "ArchitecTHOR",
        "AssemblingKits",
        "PlugCharger",
        "ReplicaCAD",
        "SceneManipulation",
        "TurnFaucet",
        "UnitreeGo2",
    ),
    250: ("StackPyramid", "TriFinger"),
    300: ("DrawTriangle", "InsertFlower", "RotateSingleObject", "RotateValveLevel4"),
    500: ("DrawSVG", "FMBAssembly"),
    600: ("MS-Hopper",),
    1000: (
        "MS-Ant",
        "MS-Cartpole",
        "MS-Humanoid",
        "TableTopFreeDraw",
        "UnitreeG1Stand",
        "UnitreeH1Stand",
    ),
    200_000: ("Empty",),
}
MAX_EPISODE_STEPS: dict[str, int] = {
    name: next((limit for limit, starts in _LIMITS.items() if name.startswith(starts)), 50)
    for name in INSTRUCTIONS
}
"""ManiSkill's own time limits; known here so that the parent process need not import it."""

CONTROL_MODES: dict[str, str] = {
    "LiftPegUpright-v1": "pd_ee_target_delta_pose",
    **dict.fromkeys(
        ("PickCube-v1", "PushCube-v1", "PullCube-v1", "StackCube-v1", "PlaceSphere-v1"),
        "pd_ee_delta_pos",
    ),
}
"""Control mode of the scripted experts, the default for their tasks; ManiSkill's own elsewhere."""
UNREPEATABLE: tuple[str, ...] = (
    "Empty-v1",
    "MS-AntRun-v1",
    "MS-AntWalk-v1",
    "MS-HopperHop-v1",
    "MS-HopperStand-v1",
    "MS-HumanoidRun-v1",
    "MS-HumanoidStand-v1",
    "MS-HumanoidWalk-v1",
    "PlugCharger-v1",
    "RotateSingleObjectInHandLevel0-v1",
    "RotateSingleObjectInHandLevel1-v1",
    "UnitreeG1PlaceAppleInBowl-v1",
    "UnitreeG1Stand-v1",
)
"""Ids whose reset leaves something of the last episode behind: they get a new scene each time."""
TOGETHER: tuple[str, ...] = (
    "DrawTriangle-v1",
    "LiftPegUpright-v1",
    "MS-CartpoleBalance-v1",
    "MS-CartpoleSwingUp-v1",
    "PickCube-v1",
    "PickCubeSO100-v1",
    "PlaceSphere-v1",
    "PokeCube-v1",
    "PullCube-v1",
    "PullCubeTool-v1",
    "PushCube-v1",
    "PushT-v1",
    "RollBall-v1",
    "SO100GraspCube-v1",
    "StackCube-v1",
    "StackPyramid-v1",
    "TableTopFreeDraw-v1",
    "TwoRobotPickCube-v1",
    "TwoRobotStackCube-v1",
    "UnitreeG1TransportBox-v1",
)
"""Ids whose rows give the same numbers on the CPU, stepped together or one by one."""


def task_id(name: str) -> str:
    """The id of a task given as ``"PickCube-v1"``, ``"PickCube"`` or ``"pick_cube"``.

    Raises:
        ValueError: no such task; the message lists near names.
    """
    wanted = name.removesuffix("-v1").replace("_", "").replace("-", "").lower()
    for known in INSTRUCTIONS:
        if known.removesuffix("-v1").replace("_", "").replace("-", "").lower() == wanted:
            return known
    raise ValueError(
        f"ManiSkill has no task {name!r}{near_names(name, INSTRUCTIONS)} "
        f"(there are {len(INSTRUCTIONS)}, e.g. PickCube-v1, StackCube-v1)"
    )


def expand_tasks(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """Ids of one name or a sequence of them.

    Raises:
        ValueError: unknown or no task.
    """
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if not names:
        raise ValueError("tasks is empty: name at least one ManiSkill task, e.g. PickCube-v1")
    return tuple(task_id(name) for name in names)


def download_command(task: str) -> str | None:
    """The command that fetches what an id needs, or None if it needs nothing."""
    if task in NEEDS_PACKAGES:
        return "pip install svgpathtools"
    if task not in DOWNLOADS:
        return None
    return f"python -m mani_skill.utils.download_asset {DOWNLOADS[task] or task}"
