"""The page of points and meshes: what it holds, and what its script draws (Node runs it)."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from distillkit.report.viewer import ASPECT, ELEVATION, GREY, PALETTE, Item, by_height, page

WIDTH = 400  # of a canvas in the stand-in for a browser
CLOUD = np.random.default_rng(0).uniform([-40, -40, -2], [40, 40, 3], (200, 3)).astype(np.float32)
CORNERS = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])

# The least of a browser that the script asks for. It prints what was drawn in one frame after the
# events.
BROWSER = """
const calls = [], listeners = {}, captions = [];
const record = extra => new Proxy({...extra}, {
  get: (own, name) => name in own ? own[name] : (...given) => { calls.push([name, ...given.map(plain)]); return given[0]; },
  set: (own, name, value) => { own[name] = value; if (name === "fillStyle") calls.push([name, value]); return true; },
});
const plain = value => ArrayBuffer.isView(value) ? [...value] : value;
let frame = null;
class Element {
  constructor() { this.children = []; this.width = 300; this.height = 150; this.clientWidth = %(width)d; }
  set textContent(text) { captions.push(text); }
  setAttribute() {}
  setPointerCapture() {}
  append(...parts) { this.children.push(...parts); }
  addEventListener(name, work) { (listeners[name] ??= []).push(work.bind(this)); }
  getContext(kind) {
    if (kind === "2d") return record({canvas: this});
    return %(webgl)s ? record({canvas: this, getProgramParameter: () => true, getAttribLocation: (_, name) => name}) : null;
  }
}
globalThis.document = {createElement: () => new Element(), getElementById: () => new Element()};
globalThis.matchMedia = () => ({matches: %(still)s});
globalThis.devicePixelRatio = 1;
globalThis.addEventListener = (name, work) => { (listeners[name] ??= []).push(work); };
globalThis.requestAnimationFrame = work => { frame = work; };
let kept = 0;
const send = (name, event) => listeners[name][0]({preventDefault: () => { kept += 1; }, pointerId: 1, buttons: 1, ...event});
new Function(require("fs").readFileSync(0, "utf8"))();
frame(0);
const frames = [calls.splice(0)];
for (const [name, event] of %(events)s) {
  if (name === "frame") frame(event); else send(name, event);
  frames.push(calls.splice(0));
}
console.log(JSON.stringify({frames, captions, kept}));
"""


def scene(text: str) -> dict:
    return json.loads(re.search(r"const scene = (.*);", text)[1])


def decoded(item: dict) -> np.ndarray:
    """The places [n, 3] of an item in [-1, 1]."""
    return np.frombuffer(base64.b64decode(item["places"]), "<u2").reshape(-1, 3) / 32767.5 - 1


def browse(text: str, *events: list, webgl: bool = False, still: bool = True) -> dict:
    """What the page's script draws at first and after each of the events."""
    if not (node := shutil.which("node")):
        pytest.skip("there is no Node to run the script of the page")
    facts = {"width": WIDTH, "webgl": json.dumps(webgl), "still": json.dumps(still), "events": json.dumps(events)}
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    done = subprocess.run([node, "-e", BROWSER % facts], input=script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def seen(x: np.ndarray, azimuth: float = -0.9, elevation: float = ELEVATION) -> np.ndarray:
    """Coordinates [n, 3] to the right, up and towards a camera at these angles."""
    level = np.array([math.cos(azimuth), math.sin(azimuth), 0]) * math.cos(elevation)
    front = level + [0, 0, math.sin(elevation)]
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0])
    return x @ np.stack([right, np.cross(front, right), front], 1)


# What the page holds


def test_the_page_needs_nothing_else():
    text = page([Item("a <b> & </script>", CLOUD), Item("mesh", 10 * CORNERS, faces=FACES)], "x <y>", "n & n")
    assert "http" not in text and "src=" not in text and "url(" not in text and "import" not in text
    assert text.count("<script>") == text.count("</script>") == 1
    assert "<title>x &lt;y&gt;</title>" in text and "n &amp; n" in text and "<b>" not in text
    assert [item["caption"] for item in scene(text)["items"]] == ["a <b> & </script>", "mesh"]


def test_numbers_are_kept_within_their_sixteen_bits():
    mesh = Item("mesh", 10 * CORNERS + 5, np.arange(12, dtype=np.uint8).reshape(4, 3), FACES)
    cloud, solid = scene(page([Item("cloud", CLOUD), mesh], "x"))["items"]
    both = np.concatenate([CLOUD, mesh.vertices])
    centre, half = (both.min(0) + both.max(0)) / 2, np.ptp(both, axis=0).max() / 2
    for item, own in ((cloud, CLOUD), (solid, mesh.vertices)):
        assert np.abs(decoded(item) * half + centre - own).max() <= half / 65535 * 1.01
    assert np.frombuffer(base64.b64decode(solid["faces"]), "<u2").reshape(-1, 3).tolist() == FACES.tolist()
    assert np.frombuffer(base64.b64decode(solid["colours"]), np.uint8).tolist() == list(range(12))
    assert cloud["faces"] is cloud["colours"] is None


def test_a_scan_is_small():
    scan = np.random.default_rng(0).uniform(-50, 50, (20_000, 3))
    assert len(page([Item("scan", scan)], "Scan")) < 175_000


def test_colours_of_heights():
    z = np.array([-9.0, -2, 0.5, 3, 9])
    assert np.array_equal(by_height(z, -2, 3), PALETTE[[0, 0, 128, 255, 255]])
    assert np.array_equal(by_height(z, 1, 1)[[0, -1]], PALETTE[[0, 255]])


@pytest.mark.parametrize("spread", [0.0, 1e-30, 1e30])
def test_extents_of_any_size(spread):
    held = scene(page([Item("a", spread * CORNERS, radius=0.1)], "x"))
    assert np.isfinite(decoded(held["items"][0])).all() and 0 < held["reach"] < 10


@pytest.mark.parametrize(
    "item, message",
    [
        (Item("a", np.zeros((0, 3))), "nothing to show"),
        (Item("a", np.full((2, 3), np.nan)), "a: NaN or infinity among the vertices"),
        (Item("a", np.zeros((70_000, 3)), faces=FACES), "a: a mesh of 70,000 vertices, at most 65,536"),
        (Item("a", CORNERS, faces=FACES + 1), "a: faces of vertices that are not among its 4"),
        (Item("a", CORNERS, faces=-FACES), "a: faces of vertices that are not among its 4"),
    ],
)
def test_what_cannot_be_shown_is_refused(item, message):
    with pytest.raises(ValueError, match=message):
        page([item], "x")


# What its script draws


def test_points_are_drawn_where_they_are_and_the_nearest_last():
    text = page([Item("a </script>", CLOUD)], "x")
    drawn = browse(text)
    calls = [call for call in drawn["frames"][0] if call[0] in ("fillStyle", "fillRect")]
    colours, boxes = [c[1] for c in calls[::2]], np.array([c[1:] for c in calls[1::2]])
    held = scene(text)
    x = seen(decoded(held["items"][0]))
    order = np.argsort(x[:, 2], kind="stable")
    scale = WIDTH / 2 / held["reach"]
    wanted = np.stack([WIDTH / 2 + scale * x[:, 0], WIDTH / ASPECT / 2 - scale * x[:, 1]], 1)[order]
    assert np.abs(boxes[:, :2] + boxes[:, 2:] / 2 - wanted).max() < 0.01
    low, high = np.quantile(CLOUD[:, 2], [0.01, 0.99])
    far = 0.3 * (0.5 - 0.25 * x[order, 2:])
    wanted = by_height(CLOUD[:, 2], low, high)[order] * (1 - far) + 255 * far
    step = np.abs(np.diff(PALETTE.astype(int), axis=0)).max()  # of sixteen bits, to the next colour
    assert np.abs(np.array([re.findall(r"\d+", c) for c in colours], float) - wanted).max() <= step + 1
    assert drawn["captions"] == ["a </script>"]


def test_all_of_the_scene_is_within_the_picture_while_it_turns():
    text = page([Item("a", CLOUD)], "x")
    x, reach = decoded(scene(text)["items"][0]), scene(text)["reach"]
    for azimuth in np.linspace(0, 2 * math.pi, 16):
        assert (np.abs(seen(x, azimuth)[:, :2]).max(0) < [reach, reach / ASPECT]).all()


def test_faces_are_lit_and_painted_from_the_back():
    drawn = browse(page([Item("mesh", CORNERS, faces=FACES)], "x"))["frames"][0]
    styles = [int(re.findall(r"\d+", call[1])[0]) for call in drawn if call[0] == "fillStyle"]
    assert len(styles) == 4 and len(set(styles)) > 1 and min(styles) > 0.4 * GREY[0]
    assert [call[0] for call in drawn].count("lineTo") == 8
    last = [call[1:] for call in drawn if call[0] == "moveTo"][-1]  # the slanting face is in front, its first corner x
    held = scene(page([Item("mesh", CORNERS, faces=FACES)], "x"))
    x = seen(decoded(held["items"][0]))
    near = FACES[np.argmax(x[FACES].mean(1)[:, 2])][0]
    assert last[0] == pytest.approx(WIDTH / 2 * (1 + x[near, 0] / held["reach"]), abs=0.01)


def test_webgl_gets_the_same_numbers():
    text = page([Item("cloud", CLOUD), Item("mesh", 10 * CORNERS, faces=FACES, radius=0.5)], "x")
    drawn = browse(text, webgl=True)["frames"][0]
    names = [call[0] for call in drawn]
    assert names.count("drawImage") == 2 and "fillRect" not in names
    assert ["drawArrays", len(CLOUD)] == [call[0::3] for call in drawn if call[0] == "drawArrays"][0]
    held = scene(text)
    buffers = [call[2] for call in drawn if call[0] == "bufferData"]
    for places, item in zip((buffers[0], buffers[2]), held["items"], strict=True):
        assert np.array_equal(places, np.frombuffer(base64.b64decode(item["places"]), "<u2"))
    assert len(buffers[1]) == CLOUD.size and buffers[4] == FACES.flatten().tolist()
    (turn, *_) = [call[3] for call in drawn if call[0] == "uniformMatrix3fv"]
    assert np.abs(np.reshape(turn, (3, 3)).T - seen(np.eye(3))).max() < 1e-9


def test_all_items_turn_until_they_are_touched():
    text = page([Item("a", CLOUD), Item("b", CLOUD)], "x")
    drag = ["pointermove", {"movementX": 30, "movementY": 0}]
    drawn = browse(text, ["frame", 50], ["pointerdown", {}], ["frame", 100], drag, ["frame", 150], still=False)[
        "frames"
    ]
    boxes = [[call[1:3] for call in frame if call[0] == "fillRect"] for frame in drawn]
    assert len(boxes[0]) == len(boxes[1]) == len(boxes[5]) == 2 * len(CLOUD) and boxes[0] != boxes[1]
    assert boxes[0][: len(CLOUD)] == boxes[0][len(CLOUD) :] and boxes[5][: len(CLOUD)] == boxes[5][len(CLOUD) :]
    assert boxes[3] == [] and boxes[5] != boxes[1]  # still, once it is held; then it follows


def test_who_wants_less_motion_sees_it_still():
    drawn = browse(page([Item("a", CLOUD)], "x"), ["frame", 50], still=True)["frames"]
    assert len(drawn[0]) and drawn[1] == []


def test_the_wheel_zooms_only_what_was_touched():
    text, wheel = page([Item("a", CLOUD)], "x"), ["wheel", {"deltaY": -250}]
    before = browse(text, wheel, ["frame", 50])
    assert before["kept"] == 0 and before["frames"][2] == []
    after = browse(text, ["pointerdown", {}], wheel, ["frame", 50])
    spread = [np.ptp([call[1] for call in after["frames"][i] if call[0] == "fillRect"]) for i in (0, 3)]
    assert after["kept"] == 1 and spread[1] == pytest.approx(spread[0] * math.exp(0.5), rel=0.01)
