import io
import math
import re
import sys

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from distillkit import progress as activities
from distillkit.callbacks import progress
from distillkit.callbacks.progress import Progress, clock
from distillkit.progress import calls, counted, duration

pytestmark = pytest.mark.filterwarnings("ignore")


class Turns(LightningModule):
    """Two roles in turn; each step takes `seconds` of a clock that only this module moves."""

    def __init__(self, now, seconds):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))
        self.now, self.seconds = now, seconds

    def training_step(self, batch, batch_idx):
        self.now[0] += self.seconds
        step = self.global_step + 1
        self.log("student/loss" if step % 2 else "fake_score/loss", torch.tensor(float(step)))
        self.log("student/grad_norm", torch.tensor(77.0))
        if self.seconds < 0 and step == 3:
            raise RuntimeError("broken")
        return self.w.square()

    def validation_step(self, batch, batch_idx):
        self.log("val/frechet", torch.tensor(0.25))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(monkeypatch, callback, seconds=1.0, max_steps=20, val=False, epoch=7):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    loader = torch.utils.data.DataLoader(torch.zeros(epoch))  # shorter than the run: several epochs, still one bar
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=2,
        limit_val_batches=1 if val else 0,
    )
    trainer.fit(Turns(now, seconds), loader, torch.utils.data.DataLoader(torch.zeros(1)))
    return trainer


def test_a_pipe_gets_one_plain_line_each_tenth_of_the_run(monkeypatch, capsys):
    run(monkeypatch, Progress())
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert [re.match(r"step (\d+)/20 \((\d+)%\)", line).groups() for line in lines] == [
        (str(step), str(5 * step)) for step in range(2, 21, 2)
    ]
    assert all(char == "\n" or char.isprintable() for char in out)
    assert lines[0].endswith("1 steps/s  0:02  0:18 left")
    assert lines[-1].endswith("1 steps/s  0:20")
    assert "grad_norm" not in out


def test_what_a_method_has_noted_is_newer_than_what_was_logged(monkeypatch, capsys):
    step = Turns.training_step

    def noting(self, *args):
        loss = step(self, *args)
        self.noted = {"student/loss": torch.tensor(5.0), "fake_score/loss": None}
        return loss

    monkeypatch.setattr(Turns, "training_step", noting)
    run(monkeypatch, Progress())
    assert all("student 5 " in line for line in capsys.readouterr().out.splitlines())


def test_losses_are_smoothed_over_time(monkeypatch, capsys):
    run(monkeypatch, Progress())
    keep = math.exp(-1.0 / progress.MEMORY)
    shown = {}
    for step in range(1, 21):  # the other role keeps its last value, as Lightning's metrics do
        for role, last in (("student", step - (step + 1) % 2), ("fake_score", step - step % 2)):
            if last > 0:
                shown[role] = keep * shown.get(role, last) + (1 - keep) * last
    last_line = capsys.readouterr().out.splitlines()[-1]
    for role, value in shown.items():
        assert f"{role} {value:.4g}" in last_line


def test_a_slow_run_speaks_every_fifteen_seconds_and_soon_after_its_start(monkeypatch, capsys):
    run(monkeypatch, Progress(), seconds=1.0, max_steps=60, epoch=60)
    steps = [int(re.match(r"step (\d+)/", line)[1]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [3, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60]
    run(monkeypatch, Progress(), seconds=5.0, max_steps=60, epoch=60)
    steps = [int(re.match(r"step (\d+)/", line)[1]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [1, 4, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 48, 51, 54, 57, 60]


def test_the_metrics_are_looked_at_four_times_a_second_at_most(monkeypatch, capsys):
    looks = []
    floats = progress._floats
    monkeypatch.setattr(progress, "_floats", lambda metrics: looks.append(metrics) or floats(metrics))
    run(monkeypatch, Progress(), seconds=1 / 64, max_steps=128, epoch=128)  # two seconds
    assert len(looks) == 2 * 4 + 1  # and once at the end


def test_new_validation_numbers_are_said_once(monkeypatch, capsys):
    run(monkeypatch, Progress(), val=True, epoch=10)
    out = capsys.readouterr().out
    assert out.count("val/frechet 0.25") == 1  # the value never changes
    assert "step 10  val/frechet 0.25" in out.splitlines()


class Screen(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return screen


def test_a_terminal_gets_one_bar_over_all_steps(monkeypatch):
    screen = terminal(monkeypatch)
    run(monkeypatch, Progress())
    out = screen.getvalue()
    assert "step 1 / 20" in out and "step 20 / 20" in out and "━" in out
    assert out.count("\n") == 1  # one bar, refreshed in place
    assert out.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_a_terminal_can_have_plain_lines(monkeypatch):
    screen = terminal(monkeypatch)
    run(monkeypatch, Progress(plain=True))
    assert "\x1b" not in screen.getvalue() and screen.getvalue().count("\n") == 10


def test_an_exception_gives_the_terminal_back(monkeypatch):
    screen = terminal(monkeypatch)
    callback = Progress()
    with pytest.raises(RuntimeError, match="broken"):
        run(monkeypatch, callback, seconds=-1.0)
    assert callback.bar is None and screen.getvalue().rstrip().endswith("\x1b[?25h")


def test_disabled_is_silent(monkeypatch, capsys):
    callback = Progress()
    callback.disable()
    run(monkeypatch, callback)
    assert capsys.readouterr().out == ""


def test_clock():
    assert [clock(s) for s in (0.4, 7, 59.6, 750, 3723)] == ["0:00", "0:07", "1:00", "12:30", "1:02:03"]


# Work outside of training steps


def work(monkeypatch, models, seconds):
    """Models that take ten calls each, on a clock that only they move."""
    now = [1000.0]
    monkeypatch.setattr(activities.time, "monotonic", lambda: now[0])
    with activities.progress("evaluating", models) as evaluating:
        for _ in range(models):
            for _ in counted("sampling", 10):
                now[0] += seconds
            evaluating.advance()


def test_what_takes_long_says_what_it_is_and_how_long_it_takes(monkeypatch, capsys):
    work(monkeypatch, models=4, seconds=1.0)
    assert capsys.readouterr().out.splitlines() == [
        "evaluating (1 of 4): sampling  30%  0:03  0:07 left",
        "evaluating  50%  0:20  0:20 left",  # after 18 seconds sampling had 2 left, of which nobody speaks
        "evaluating (4 of 4): sampling  50%  0:05  0:05 left",
        "evaluating: done in 0:40",
    ]


def test_what_has_no_end_in_sight_is_named(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(activities.time, "monotonic", lambda: now[0])
    with activities.progress("drawing pictures"):
        for _ in counted("sampling", 4):
            now[0] += 3.0
    assert capsys.readouterr().out.splitlines() == [
        "drawing pictures: sampling  25%  0:03  0:09 left",
        "drawing pictures: done in 0:12",
    ]


def test_what_is_short_is_silent(monkeypatch, capsys):
    work(monkeypatch, models=4, seconds=0.05)
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_bars_that_go_away(monkeypatch):
    screen = terminal(monkeypatch)
    work(monkeypatch, models=2, seconds=1.0)
    out = screen.getvalue()
    assert "evaluating" in out and "sampling" in out and "left" in out and "━" in out
    assert activities._screen is None and "\x1b[?25h" in out[-40:]  # the cursor is back


def test_in_training_all_share_one_display(monkeypatch):
    """A terminal shows one thing at a time: a second bar would be drawn over the first."""
    terminal(monkeypatch)
    bar = activities.open_screen()
    try:
        with activities.progress("sampling", 10):
            assert activities._screen is bar and [task.description for task in bar.tasks] == ["sampling"]
        assert activities._screen is bar and bar.tasks == []
    finally:
        activities.close_screen()


def test_what_is_over_at_once_is_not_drawn_and_may_be_timed(monkeypatch):
    screen = terminal(monkeypatch)
    network = torch.nn.Linear(2, 2)
    with calls("sampling", network, 7):
        network(torch.zeros(7, 2))
    assert screen.getvalue() == ""


def test_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    work(monkeypatch, models=4, seconds=1.0)
    assert capsys.readouterr().out == ""


def test_an_error_leaves_nothing_behind(monkeypatch):
    terminal(monkeypatch)
    with pytest.raises(RuntimeError, match="broken"), activities.progress("sampling", 3):
        raise RuntimeError("broken")
    assert activities._screen is None and activities._doing == []


def test_calls_of_a_network_count_themselves():
    network = torch.nn.Linear(2, 2)
    with calls("sampling", network, 20) as sampling:
        network(torch.zeros(7, 2))
        network(torch.zeros(6, 2))
    network(torch.zeros(5, 2))
    assert sampling.done == 13


def test_samplers_count_what_they_call():
    """Students, guided and two-call teachers and discrete diffusion models all end at 100 %."""
    from helpers import neural

    from distillkit.discrete.exact import Table, potts
    from distillkit.discrete.process import Absorbing
    from distillkit.discrete.teacher import DiscreteTeacher
    from distillkit.methods.sid import SiD

    seen = []
    teacher, tokens = neural(), DiscreteTeacher(Table(potts(3, 5, 1.5), Absorbing(3)), (5,))
    student = SiD(teacher, num_steps=3).product()
    cond = {"label": torch.arange(7) % 2}
    makers = [
        lambda: student.sample(7, cond, 0, batch_size=4),
        lambda: teacher.generate(7, cond, 0, "heun", teacher.grid(5)),
        lambda: teacher.generate(7, cond, 0, "ddim", teacher.grid(5), kappa=2.0, chunk=4),
        lambda: tokens.generate(7, {}, 0, "tweedie", tokens.grid(5)),
    ]
    close = activities.Activity.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activities.Activity, "advance", lambda self, *n: close(self, *n) or seen.append(self))
        for make in makers:
            make()
            assert seen[-1].done == seen[-1].total > 0


def test_durations_in_texts():
    said = [duration(seconds) for seconds in (0.4, 7, 59.6, 110, 119.7, 3599.6, 3723)]
    assert said == ["0 s", "7 s", "1 min 0 s", "1 min 50 s", "2 min 0 s", "1 h 0 min 0 s", "1 h 2 min 3 s"]
