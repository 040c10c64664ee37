"""``draw``: a page on this machine only, on which a digit is drawn with a mouse or a finger, and named."""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL, info, lay, run_command
from PIL import Image

from mnist_exp import load_model
from mnist_exp.data.formats import read
from mnist_exp.data.pictures import padded
from mnist_exp.inference.draw import SIDE, Server, answer
from mnist_exp.inference.frame import frame

# knows its digits, after some seconds
SURE = [
    *("data=sample", "model=small_cnn", "optimizer=adamw", "optimizer.lr=0.003", "schedule=cosine", "augment=light"),
    *("schedule.initial_epochs=3", "schedule.extra_epochs=1", "evaluate.test=false"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Two runs of a second, a and b."""
    folder = tmp_path_factory.mktemp("small")
    for seed, name in enumerate("ab"):
        assert run_command("train", *SMALL, f"seed={seed}", f"hydra.run.dir={folder / name}") == 0
    return folder


@pytest.fixture
def server(small) -> Iterator[Server]:
    with Server(0) as serving:
        serving.model = load_model(small / "a", small / "b")
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture
def drawn_at_once(monkeypatch) -> None:
    """The command ends as by Ctrl-C, as soon as it would wait for a browser."""

    def interrupted(self: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)


def ask(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, dict]:
    """Return status, text and headers of a reply; ``headers`` None: not sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    usual = {"Host": f"127.0.0.1:{server.server_port}", "Origin": server.url}
    connection.putrequest(method, path, skip_host=True)
    for name, value in (usual | headers).items():
        if value is not None:
            connection.putheader(name.replace("_", "-"), value)
    if body is not None and "Content_Length" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    if body:
        connection.send(body)
    reply = connection.getresponse()
    return reply.status, reply.read().decode(), dict(reply.headers)


def drawing(index: int = 0) -> np.ndarray:
    """A digit of the bundled ones, enlarged."""
    image = read("sample", Path()).images[0][index]
    return np.asarray(Image.fromarray(np.asarray(image)).resize((SIDE, SIDE)))


def test_the_answer_is_that_of_the_members_and_their_mean(small):
    model = load_model(small / "a", small / "b")
    said = answer(model, drawing())
    image = frame(Image.fromarray(drawing()), "no").image
    assert np.array_equal(np.reshape(said["image"], (28, 28)), image)
    assert said["inked"]
    each = [load_model(small / name).predict(image[None])[1][0] for name in "ab"]
    assert np.allclose(said["members"], each, atol=1e-6)
    assert np.allclose(said["probabilities"], np.mean(each, 0), atol=1e-6)
    assert sum(said["probabilities"]) == pytest.approx(1)
    assert not answer(model, np.zeros((SIDE, SIDE), np.uint8))["inked"]


@pytest.mark.parametrize("invert", [False, True])
def test_networks_of_other_pictures_see_the_drawing_as_they_were_trained(command, place, invert, small, drawn_at_once):
    lay(place / "mine", ["a", "b"], 12)
    folders = [
        "data=image_folder",
        "data.root=mine",
        "data.val_size=4",
        "data.train_limit=null",
        f"data.invert={invert}",
    ]
    assert command("train", *SMALL, *folders, "trainer.max_steps=1", "hydra.run.dir=run").status == 0
    page = np.zeros((SIDE, SIDE), np.uint8)
    page[20:120, 30:50] = 255
    assert np.array_equal(np.reshape(answer(load_model("run"), page)["image"], (28, 28)), padded(Image.fromarray(page)))
    if not invert:  # of as many classes as digits, but of other pictures
        about = info(place / "run")
        about["dataset"]["classes"] = list("0123456789")
        (place / "run" / "run.json").write_text(json.dumps(about))
        assert "networks that see pictures alike" in command("draw", "run", str(small / "a")).err


def test_the_page_asks_and_is_answered(server):
    status, page, headers = ask(server, "GET", "/", Origin=None)
    assert status == 200
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    assert len(re.findall(r"<(?:script|style)[^>]*>", page)) == page.count(f'nonce="{nonce}"') == 3
    assert nonce not in ask(server, "GET", "/")[1]
    status, text, _ = ask(server, "POST", "/predict", drawing().tobytes())
    assert status == 200
    assert json.loads(text) == answer(server.model, drawing())


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", None, "localhost:x"]
)
def test_another_name_of_this_machine_is_refused(server, host):
    for method, path, body in (("GET", "/", None), ("POST", "/predict", drawing().tobytes())):
        origin = f"http://{host}"
        status, text, _ = ask(server, method, path, body, Host=host, Origin=origin)
        assert (status, "own machine" in text) == (403, True)


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://localhost:1", "https://127.0.0.1"])
def test_pages_of_other_sites_are_not_answered(server, origin):
    status, text, headers = ask(server, "POST", "/predict", drawing().tobytes(), Origin=origin)
    assert (status, text) == (403, "only the page itself is answered")
    assert not any("access-control" in name.lower() for name in headers)


def test_the_end_of_a_tunnel_is_this_machine(server):
    names = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
    assert ask(server, "POST", "/predict", drawing().tobytes(), **names)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/../run.json", None, {}, 404),
        ("GET", "//etc/passwd", None, {}, 404),
        ("POST", "/", bytes(SIDE * SIDE), {}, 400),
        ("POST", "/predict", bytes(9), {}, 400),
        ("POST", "/predict", None, {}, 400),
        ("POST", "/predict", b"", {"Content_Length": str(10**12)}, 400),
        ("POST", "/predict", b"", {"Content_Length": "-1"}, 400),
        ("POST", "/predict", b"", {"Transfer_Encoding": "chunked", "Content_Length": None}, 400),
        ("DELETE", "/", None, {}, 501),
    ],
)
def test_nothing_else_is_answered(server, method, path, body, headers, status):
    assert ask(server, method, path, body, **headers)[0] == status
    assert ask(server, "GET", "/")[0] == 200


def test_a_browser_that_goes_away_or_says_nothing_stops_nobody(server, capfd):
    silent = socket.create_connection(("127.0.0.1", server.server_port))
    gone = socket.create_connection(("127.0.0.1", server.server_port))
    gone.sendall(
        b"POST /predict HTTP/1.0\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nContent-Length: 78400\r\n\r\n01"
    )
    gone.close()
    assert ask(server, "GET", "/")[0] == 200
    silent.close()
    assert capfd.readouterr().err == ""


def test_only_this_machine_can_connect(server):
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as other:  # all of 127.0.0.0/8 is this machine's own, but only one address is served
        assert other.connect_ex(("127.0.0.2", server.server_port)) != 0


def test_names_of_a_stranger_stay_text(server, monkeypatch):
    monkeypatch.setattr(server.model, "classes", ["</script><b>", "__NONCE__", "a\u202eb", *"3456789"])
    page = ask(server, "GET", "/")[1]
    data = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page)[1]
    assert json.loads(data) == {
        "classes": ["</script><b>", "__NONCE__", "a\\u202eb", *"3456789"],
        "members": ["a", "b"],
    }


def test_runs_of_the_same_name_are_told_apart(small, server, place):
    shutil.copytree(small / "a", place / "a")
    server.model = load_model(small / "a", place / "a")
    assert str(small / "a") in server.page("x").decode()


def test_the_command_says_where_the_page_is(command, small, drawn_at_once):
    done = command("draw", str(small / "a"))
    assert (done.status, done.err) == (130, "")
    assert f"{info(small / 'a')['best_epoch']}.pth" in done.out.splitlines()[0]
    assert re.search(r"page     http://127\.0\.0\.1:\d+ ", done.out)
    last = command("draw", str(small / "a"), "--checkpoint", "last")
    assert "last.pth" in last.out
    (name,) = (path.name for path in (small / "a" / "checkpoints").glob("*_ckpt_epoch1.pth"))
    assert f"/checkpoints/{name}\n" in command("draw", str(small / "a"), "--checkpoint", name).out


def test_a_port_in_use(command, small, drawn_at_once):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("draw", str(small / "a"), "--port", str(port))
        assert done.status == 2
        assert done.err == f"error: --port {port} is in use; name another one, or leave it out: a free one is taken\n"
    assert f"127.0.0.1:{port} " in command("draw", str(small / "a"), "--port", str(port)).out


def test_the_usual_port_in_use_gives_another(command, small, drawn_at_once, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("mnist_exp.cli.draw.PORT", port)
        done = command("draw", str(small / "a"))
    assert f"port {port} is in use, so another one was taken" in done.out
    assert int(re.search(r"127\.0\.0\.1:(\d+) ", done.out)[1]) != port


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["RUN"]),
        (["nowhere"], ["nowhere", "run.json"]),
        (["RUN", "RUN"], ["RUN is ", "each run once"]),
        (["RUN", "--port", "0"], ["--port is 0", "between 1 and 65535"]),
        (["RUN", "--port", "70000"], ["--port is 70000"]),
        (["RUN", "--port", "many"], ["--port", "many"]),
        (
            ["RUN", "--checkpoint", "wrost"],
            ["--checkpoint is wrost", "best, last, swa", "_ckpt_epoch1.pth", "last.pth"],
        ),
        (["RUN", "--share"], ["--share"]),
    ],
)
def test_mistakes_get_one_message(command, small, drawn_at_once, arguments, words):
    done = command("draw", *(str(small / "a") if word == "RUN" else word for word in arguments))
    assert done.status == 2
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("answers", ["1 / 0", "torch.full((len(images), 10), float('nan'))"])
def test_a_network_that_does_not_answer_is_named(command, place, drawn_at_once, monkeypatch, answers):
    lines = ["import torch", "class Net(torch.nn.Linear):", "    calls = 0", "    def __init__(self, num_classes):"]
    lines += ["        super().__init__(784, num_classes)", "    def forward(self, images):"]
    lines += ["        if not torch.is_inference_mode_enabled() or len(images) > 1:"]
    lines += ["            return super().forward(images.flatten(1))", f"        return {answers}"]
    (place / "drawn_net.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("MNIST_EXP_ALLOW", "drawn_net.*")
    monkeypatch.delitem(sys.modules, "drawn_net", raising=False)
    net = ["model._target_=drawn_net.Net", "~model.channels", "~model.ghost_batch_size"]
    assert command("train", *SMALL, *net, "hydra.run.dir=run").status == 0
    done = command("draw", "run")
    assert done.status == 2
    assert "run: " in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_ctrl_c_ends_it(place, small):
    for number in (signal.SIGINT, signal.SIGTERM):
        with started(place, small / "a") as (process, _):
            process.send_signal(number)
            assert process.wait(20) == 130
            assert process.stderr.read() == ""


class started:  # noqa: N801
    """The command as a process of its own, and the address of its page."""

    def __init__(self, place: Path, *runs: Path):
        words = [sys.executable, "-m", "mnist_exp", "draw", *map(str, runs)]
        self.process = subprocess.Popen(words, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> tuple[subprocess.Popen, str]:
        lines = iter(self.process.stdout.readline, "")
        return self.process, next(found[1] for line in lines if (found := re.search(r"page +(http://\S+)", line)))

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


STROKES = {
    "7": [[(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)]],
    "1": [[(0.5, 0.2), (0.48, 0.8)]],
    "0": [[(0.5 + 0.17 * np.sin(a), 0.5 - 0.28 * np.cos(a)) for a in np.linspace(0, 2 * np.pi, 40)]],
}


def places(page, stroke):
    box = page.locator("#pad").bounding_box()
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]


def with_mouse(page, digit):
    for stroke in STROKES[digit]:
        first, *others = places(page, stroke)
        page.mouse.move(*first)
        page.mouse.down()
        for place in others:
            page.mouse.move(*place, steps=6)
        page.mouse.up()


def with_finger(page, digit):
    touch = page.context.new_cdp_session(page)
    for stroke in STROKES[digit]:
        kinds = ["touchStart", *["touchMove"] * (len(stroke) - 1)]
        for kind, (x, y) in zip(kinds, places(page, stroke), strict=True):
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.mark.slow
@pytest.mark.parametrize(("width", "draw"), [(375, with_finger), (1280, with_mouse)], ids=["phone", "desktop"])
def test_what_is_drawn_in_a_browser_is_named(place, browser, width, draw):
    from playwright.sync_api import expect

    for seed in "12":
        assert run_command("train", *SURE, f"seed={seed}", f"hydra.run.dir=run{seed}") == 0
    context = browser.new_context(viewport={"width": width, "height": 740}, has_touch=draw is with_finger)
    page = context.new_page()
    requests, problems = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    with started(place, place / "run1", place / "run2") as (process, url):
        page.goto(url)
        said, best = page.locator("#said"), page.locator(".class.best")
        assert said.inner_text() == "Nothing is drawn yet"
        for digit in STROKES:
            draw(page, digit)
            expect(page.locator("#answer")).to_have_attribute(
                "aria-busy", "false"
            )  # while it is drawn it is asked, too
            expect(said).to_have_text(re.compile(rf"^{digit}\s*with \d+\.\d %$"), timeout=20_000)
            assert best.locator("span").first.inner_text() == digit
            assert page.locator(".class").count() == 10
            assert re.fullmatch(r"\d+\.\d %", best.locator("span").last.inner_text())
            assert [text[:4] for text in page.locator(".member span:first-child").all_inner_texts()] == ["run1", "run2"]
            assert all(
                re.fullmatch(r"\d, \d+\.\d %", t) for t in page.locator(".member span:last-child").all_inner_texts()
            )
            seen = "[...document.querySelector('#seen').getContext('2d').getImageData(0, 0, 28, 28).data]"
            light = np.reshape(page.evaluate(seen), (28, 28, 4))[..., 0] > 127
            assert 15 < light.sum() < 300
            assert light.any(1).sum() in (19, 20)  # the height of MNIST's digits
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
                "the page scrolls sideways"
            )
            assert page.evaluate("window.scrollY") == 0, "a finger that draws scrolls the page"
            page.get_by_role("button", name="Clear").click()
            assert said.inner_text() == "Nothing is drawn yet"
        draw(page, "1")
        page.get_by_role("button", name="Undo").click()
        expect(said).to_have_text("Nothing is drawn yet")
        assert problems == []
        assert {re.match(r"http://[^:/]+|\w+:", request)[0] for request in requests} <= {"http://127.0.0.1", "data:"}
        process.kill()
        process.wait()
        draw(page, "1")
        expect(said).to_have_text("No answer: the program has ended; start it again")
