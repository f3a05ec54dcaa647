"""Pictures of ManiSkill without a graphics driver, against a projection worked out by hand."""

import numpy as np
import pytest
from PIL import Image

from embodied_rl.doctor import gl_backend

pytest.importorskip("mani_skill")
if gl_backend() is None:
    pytest.skip("no software OpenGL here", allow_module_level=True)

from embodied_rl.envs import make_env
from embodied_rl.envs.base import Renderer
from embodied_rl.envs.maniskill.scenes import SceneOptions, Scenes
from embodied_rl.envs.maniskill.shapes import ShapeCamera


@pytest.fixture
def scene(request):
    scenes = Scenes(request.param, options=SceneOptions(reward="none"))
    scenes.reset(np.zeros(1, np.int64), np.array([3]))
    camera = ShapeCamera(scenes.env)
    yield scenes.env, camera
    camera.close()
    scenes.close()


def pixel(env, point):
    """(row, column) of a world point [3]: a pinhole that looks along +x, with +y to the left."""
    config = env._default_human_render_camera_configs
    seen = (config.pose.sp.inv().to_transformation_matrix() @ np.append(point, 1))[:3]
    focal = config.height / 2 / np.tan(config.fov / 2)
    row = config.height / 2 - focal * seen[2] / seen[0]
    return round(row), round(config.width / 2 - focal * seen[1] / seen[0])


def entity(env, name):
    return next(e for e in env.scene.sub_scenes[0].entities if e.name.endswith(name))


@pytest.mark.parametrize("scene", ["StackCube-v1"], indirect=True)
def test_things_are_drawn_where_they_are_in_their_own_colours(scene):
    env, camera = scene
    for name, channel in (("cubeA", 0), ("cubeB", 1)):
        for place in ([0.15, -0.15, 0.02], [0.1, 0.2, 0.2], [0.2, 0.0, 0.05]):
            body = entity(env, name)
            body.pose = type(body.pose)(place)
            colour = camera.render()[pixel(env, place)].astype(int)
            assert colour.argmax() == channel and colour.max() > 1.5 * np.median(colour), name


@pytest.mark.parametrize("scene", ["PickCube-v1"], indirect=True)
def test_a_goal_without_shape_is_marked(scene):
    env, camera = scene
    red, green, blue = camera.render()[pixel(env, entity(env, "goal_site").pose.p)].astype(int)
    assert green > red + 40 and green > blue + 40


@pytest.mark.parametrize("scene", ["MS-CartpoleBalance-v1"], indirect=True)
def test_the_axis_of_a_capsule_is_sapiens(scene):
    env, camera = scene
    pole = next(e for e in env.scene.sub_scenes[0].entities if "pole" in e.name)
    (shape,) = (s for c in pole.components for s in getattr(c, "collision_shapes", ()))
    assert type(shape).__name__ == "PhysxCollisionShapeCapsule"
    picture = camera.render()
    frame = (pole.pose * shape.local_pose).to_transformation_matrix()
    for along, inside in ((0.95, True), (-0.95, True), (1.3, False), (-1.3, False)):
        tip = frame @ np.array([along * shape.half_length, 0, 0, 1])
        assert (picture[pixel(env, tip[:3])].max() > 120) == inside, along


def test_a_film_needs_no_driver():
    env = make_env("maniskill", tasks="PushCube-v1", num_envs=1, seed=0, render=True)
    assert isinstance(env, Renderer)
    env.reset()
    picture = env.render(0)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert np.asarray(Image.fromarray(picture).convert("L")).std() > 20
    env.close()
