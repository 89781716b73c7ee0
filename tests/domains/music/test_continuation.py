"""Music in a row: each sound goes on from the end of the one before, without a click."""

import pytest
import torch

from distillkit.rollouts import rolled_out
from domains.music import tones as music
from domains.music.codec import Mel
from domains.music.continuation import LastSound
from domains.music.mel import gone_on
from domains.music.teacher import Tones, TonesContinuation

CODEC = Mel(mean=-7.97, std=1.97)  # of conf/data/tones.yaml
STEP, GIVEN = 6_144, 2_048


def test_a_sound_goes_on_from_a_beginning_without_a_step():
    """In closed form: a beginning that lies 0.5 above goes over, on a line, to what follows."""
    made, first = torch.zeros(1, 1, 12), torch.full((1, 1, 4), 0.5)
    assert gone_on(first, made, 2)[0, 0].tolist() == [0.5] * 4 + [0.5, 0.25] + [0.0] * 6
    ramp = torch.arange(4.0).expand(1, 1, 4)
    assert gone_on(ramp, made, 4)[0, 0].tolist() == [0, 1, 2, 3, 3, 1.5, 0.5, 0] + [0.0] * 4
    assert torch.equal(gone_on(made[..., :4], made, 100), made)


def test_long_music_has_no_clicks_where_sounds_join(monkeypatch):
    """Bends near joints, in units of usual ones: 6.9; 12.1 with a step, 26.4 without beginnings."""
    monkeypatch.setattr(music, "SAMPLES", STEP * 3 + GIVEN)
    i = torch.arange(16)
    long = music.tones(i % 4, i // 4 % 24, i // 4 % 4, i, going_on=True)
    clips = long.unfold(2, STEP + GIVEN, STEP).unbind(2)

    def clicks(held: bool) -> float:
        parts = [CODEC.decode(CODEC.spectrogram(clips[0]), {})]
        for clip in clips[1:]:
            cond = {"first": parts[-1][..., -GIVEN:]} if held else {}
            parts.append(CODEC.decode(CODEC.spectrogram(clip), cond)[..., GIVEN:])
        bends = torch.cat(parts, -1)[:, 0].diff(n=2).abs()
        usual = bends.unfold(1, 8, 8).amax(2).median(1).values + 1e-6
        joints = [STEP * k + GIVEN for k in (1, 2)]
        near = torch.stack([bends[:, joint - 4 : joint + 4].amax(1) / usual for joint in joints])
        return float(near.flatten().quantile(0.9))

    held, pasted = clicks(True), clicks(False)
    assert held < 8 < 20 < pasted, (held, pasted)


def test_what_follows_is_the_end_without_gradient():
    x = torch.linspace(-2, 2, 10)[None, None].requires_grad_()
    cond = {"first": torch.zeros(1, 1, 3), "pitch": torch.tensor([2])}
    after = LastSound()(cond, x)
    assert after["first"].tolist() == [[[1.0, 1.0, 1.0]]] and not after["first"].requires_grad
    assert after["pitch"] is cond["pitch"] and LastSound().overlap(cond) == 3
    with pytest.raises(ValueError, match="which this model is not given"):
        LastSound().overlap({"pitch": cond["pitch"]})


def test_the_embedded_teacher_proceeds():
    teacher = TonesContinuation()
    cond = {name: torch.zeros(2, dtype=torch.long) for name in ("timbre", "pitch", "rhythm")}
    cond["first"] = 0.1 * torch.sin(torch.arange(GIVEN) * 0.17).expand(2, 1, GIVEN)
    long = rolled_out(teacher.generate, teacher.continuation, cond, 2)
    assert long.shape == (2, 1, GIVEN + 2 * STEP) and torch.equal(long[..., :GIVEN], cond["first"])
    assert Tones().proceed(cond, long) is None
