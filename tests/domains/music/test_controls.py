"""What music can be asked for: features of sounds whose value is known, and their gradients."""

import math
from functools import cache

import pytest
import soundfile
import torch
from mutations import Mutation, prove

from distillkit.codec import Codec
from distillkit.control.control import Asked
from domains.music import controls, targets
from domains.music.clap import Clap
from domains.music.clip import LOWEST, RATE, SAMPLES
from domains.music.codec import Mel
from domains.music.controls import Heard, Inpaint, Intensity, Label, Loop, Melody, Structure, Text, intensity
from domains.music.data import Tones
from domains.music.pipelines import MusicPipeline
from domains.music.pipelines.stable_audio import StableAudio
from domains.music.resample import resample
from domains.music.tones import tones
from domains.music.vocoder import HifiGan

CODEC = Mel(mean=-7.97, std=1.97)
ASKED = Asked((1, 64, 32), CODEC)
TIME = torch.arange(SAMPLES) / RATE


def clips(timbre, pitch, rhythm, seeds):
    return tones(*(torch.as_tensor(value) for value in (timbre, pitch, rhythm, seeds)))


@cache
def notes():
    """A note of every timbre and pitch, [96, 1, N], and their pitch classes."""
    i = torch.arange(96)
    return clips(i % 4, i // 4, 0 * i, i), (i // 4 + LOWEST) % 12


@cache
def rising(start=-40.0, end=-20.0):
    """A sine [1, 1, N] whose intensity goes from one level to another in the middles of frames."""
    wave = 0.02 * torch.sin(2 * math.pi * 440 * TIME)
    level = intensity(CODEC.log_mel(CODEC.spectrogram(wave[None, None])))[0, 10]
    curve = start + (end - start) * (TIME * RATE / (31 * CODEC.hop)).clamp(0, 1)
    return (wave * 10 ** ((curve - level) / 20))[None, None]


def written(path, x):
    soundfile.write(path, x.reshape(-1).numpy(), RATE, subtype="FLOAT")
    return str(path)


def test_a_rising_sound_has_the_curve_of_a_ramp():
    asked = Intensity.read("ramp:-40:-20", ASKED)
    x = CODEC.spectrogram(rising())
    found = asked.curves(x, {})
    assert list(found) == ["target", "sample"] and torch.equal(found["target"], torch.linspace(-40, -20, 32))
    off = found["sample"] - found["target"]
    assert off[4:28].abs().max() < 0.06  # measured 0.053; at the ends half a window is silent
    assert float(asked.error(x, {})) == float(asked.heard(rising(), {})) == pytest.approx(float(off.square().mean()))
    higher = Intensity.read("ramp:-37:-17", ASKED)
    assert float(higher.error(x, {})) == pytest.approx(9 - 6 * float(off.mean()) + float(off.square().mean()), rel=1e-4)


def test_powers_of_channels_are_averaged():
    mels = torch.tensor([0.1, 0.2]).log()[None, :, None, None].expand(1, 2, 64, 3)
    assert intensity(mels)[0].tolist() == pytest.approx([10 * math.log10(64 * 0.025 + 1e-7)] * 3)


def test_a_constant_curve_stays_constant():
    """At the ends the average is over what is there, and the window is symmetrical."""
    asked = Intensity.read("-30", ASKED)
    assert torch.allclose(asked.smooth(torch.full((3, 32), -30.0)), torch.full((3, 32), -30.0))
    one = asked.smooth(torch.eye(32))
    assert torch.allclose(one[16], one[16].flip(0).roll(1)) and (one > 0).sum(0)[16] == 7
    half = 0.5 + 0.5 * torch.cos(math.pi * torch.arange(-3, 4) / (controls.SMOOTH * RATE / 256 / 2))
    assert torch.allclose(one[16, 13:20], half / half.sum())


def test_intensity_is_that_of_what_spectrograms_can_hold():
    low, high = Intensity.read("-30", ASKED).range()
    assert low == pytest.approx(10 * math.log10(64 * 1e-8 + 1e-7), abs=1e-3) and -9 < high < -8
    for text in ("-62", "ramp:-40:0"):
        with pytest.raises(ValueError, match=f"intensity={text} asks for .* -61.3 dB \\(silence\\) to -8.6 dB"):
            Intensity.read(text, ASKED)
    Intensity.read(f"{low:.1f}", ASKED)


def test_a_sound_gives_its_own_targets(tmp_path):
    sound, _ = notes()
    path = written(tmp_path / "a.wav", sound[50])
    x = CODEC.spectrogram(sound[48:52])
    for kind, worst in ((Intensity, 1e-4), (Structure, 1e-6), (Melody, 0.0)):
        errors = kind.read(path, ASKED).error(x, {})
        assert errors[2] <= worst and errors[2] == errors.min(), kind
    melody = Melody.read(path, ASKED)
    assert set(melody.target.tolist()) == {targets.IGNORED, (12 + LOWEST) % 12}
    late = torch.cat([torch.zeros(SAMPLES), sound[50, 0]])
    with pytest.raises(ValueError, match="is silent"):
        Melody.read(written(tmp_path / "late.wav", late), ASKED)


def test_all_pitches_of_all_timbres_have_their_class():
    """1.0 of the frames within 20 dB of the loudest, and of all that are heard 0.998 (measured)."""
    sound, classes = notes()
    melody = Melody.read("A4", ASKED)
    mels = melody.listened(sound)
    level = intensity(mels)
    right = melody.chroma(mels).argmax(1) == classes[:, None]
    assert right[level > level.amax(1, keepdim=True) - 20].float().mean() > 0.9990
    assert right[level > melody.range()[0] + 1].float().mean() > 0.995


@pytest.mark.parametrize("codec", [Mel(16_000, 1_024, 64, 0.0), Mel(16_000, 1_024, 80, 80.0, 7_600.0), Mel(8_000, 512)])
def test_pitches_have_their_class_in_other_spectrograms(codec):
    sound, classes = notes()
    sound = resample(sound[1::2], RATE, codec.sample_rate)
    melody = Melody.read("A4", Asked((1, codec.bands[0], sound.shape[-1] // codec.hop), codec))
    mels = melody.listened(sound)
    level = intensity(mels)
    right = melody.chroma(mels).argmax(1) == classes[1::2, None]
    assert right[level > level.amax(1, keepdim=True) - 20].float().mean() > 0.999


def test_a_melody_counts_wrong_frames_and_leaves_out_the_others():
    """The cross-entropy is the mean of what the frames with a note have."""
    x = CODEC.spectrogram(notes()[0][60:61])  # a C, all the time
    melody = Melody.read("C5 - D5 C5", ASKED)
    logits = melody.chroma(melody.mels(x, {}))[0].log_softmax(0)
    each = torch.cat([logits[0, :8], logits[2, 16:24], logits[0, 24:]])
    assert float(melody.loss(x, {})) == pytest.approx(-float(each.mean()), rel=1e-5)
    assert float(Melody.read("- C4 C6 C", ASKED).error(x, {})) == 0
    curves = melody.curves(x, {})
    assert curves["target"][8:16].isnan().all() and curves["target"].nansum() == 16 and not curves["sample"].any()
    assert float(Melody.read("- D C -", ASKED).error(x, {})) == 0.5
    assert float(Melody.read("- D D -", ASKED).error(x, {})) == 1.0


def joined(form, a, b):
    """Parts of two clips [N] one after the other, [1, 1, N]."""
    part = SAMPLES // len(form) + 1
    return torch.cat([(a if letter == "A" else b)[1_000 : 1_000 + part] for letter in form])[None, None, :SAMPLES]


def test_a_form_is_nearest_to_itself():
    generator = torch.Generator().manual_seed(0)
    forms = ("ABA", "AAB", "ABB")
    asked = [Structure.read(form, ASKED) for form in forms]
    for k in range(12):
        a, b = clips(*torch.randint(4, (3, 2), generator=generator), [2 * k, 2 * k + 1])[:, 0]
        errors = torch.stack(
            [control.heard(torch.cat([joined(form, a, b) for form in (*forms, "AAA")]), {}) for control in asked]
        )
        assert (errors[:, :3].diagonal()[:, None] <= errors).all()


def test_a_matrix_of_cosines():
    """Two spectra in turn, without the average in time, have cosines 1 and -1."""
    structure = Structure.read("ABBA", ASKED)
    assert torch.equal(structure.target.unique(), torch.tensor([-1.0, 1.0]))
    assert structure.target[0].tolist() == [1.0] * 8 + [-1.0] * 16 + [1.0] * 8
    assert Structure.read("ABC", ASKED).target.unique().tolist() == [-0.5, 1.0]
    rng = torch.Generator().manual_seed(0)
    x = 0.5 + torch.linspace(-0.2, 0.2, 64)[:, None] * structure.target[0] + 0.1 * torch.randn(64, 1, generator=rng)
    found = structure.cosines(structure.mels(x[None, None], {}))[0]
    inner = torch.tensor([k for k in range(32) if k % 8 in (3, 4)])
    assert (found - structure.target)[inner][:, inner].abs().max() < 1e-3
    louder = structure.cosines(structure.mels(x[None, None] + 0.2 * torch.rand(32, generator=rng), {}))[0]
    assert torch.allclose(louder, found, atol=1e-4)  # a spectrum's level does not count


def test_known_frames_are_those_whose_windows_are_known(tmp_path):
    sound, _ = notes()
    path = written(tmp_path / "a.wav", sound[50])
    x = CODEC.spectrogram(sound[50:51])
    for text, unknown in (("0.3-0.6", range(8, 21)), ("0.5-", range(14, 32)), ("-0.5", range(0, 18))):
        control = Inpaint.read(f"{path}@{text}", ASKED)
        assert control.known.logical_not().nonzero()[:, 0].tolist() == list(unknown)
        assert control.error(x, {}) < 1e-6
        start, end = (
            float(side) * RATE if side else edge for side, edge in zip(text.split("-"), (0, SAMPLES), strict=True)
        )
        inside = (torch.arange(SAMPLES) >= start) & (torch.arange(SAMPLES) < end)
        noise = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0))
        assert control.heard(sound[50:51] + 0.1 * noise * inside, {}) < 1e-6
    quieter = x.clone()
    quieter[..., 2] += math.log(10) / (2 * CODEC.std)  # 20 dB
    control = Inpaint.read(f"{path}@0.5-", ASKED)
    assert float(control.error(quieter, {})) == pytest.approx(400 / 14, rel=0.2)
    with pytest.raises(ValueError, match="leaves nothing that is known for 0.128 seconds"):
        Inpaint.read(f"{path}@0.05-", ASKED)


def test_a_sound_that_comes_round_again_is_a_loop():
    loop = Loop.read("", ASKED)
    period = (loop.frames - loop.shared) * CODEC.hop
    assert (loop.shared, loop.edge, period) == (8, 2, 6_144)
    time = torch.arange(SAMPLES)
    waves = [0.05 * torch.sin(2 * math.pi * turns * time / period) for turns in (50, 177, 301)]
    round_again, sweep = sum(waves)[None, None], notes()[0][50:51]
    assert loop.heard(round_again, {}) < 1e-5 and loop.heard(sweep, {}) > 10
    assert flux_at_joint(round_again, loop) < 1.1 < 3 < flux_at_joint(sweep, loop)
    with pytest.raises(ValueError, match="say loop alone, not loop=2"):
        Loop.read("2", ASKED)
    with pytest.raises(ValueError, match="a loop needs 0.512 seconds, sounds have 0.256"):
        Loop.read("", Asked((1, 64, 8), CODEC))


def flux_at_joint(sound, loop):
    """The spectral flux where a loop starts again, in units of the largest elsewhere.

    The end fades into the start, and the loop is played twice.
    """
    shared = loop.shared * CODEC.hop
    fade = torch.linspace(0, 1, shared)
    once = sound[..., :-shared].clone()
    once[..., :shared] = fade * once[..., :shared] + (1 - fade) * sound[..., -shared:]
    mels = CODEC.spectrogram(once.repeat(1, 1, 2))[0, 0]
    flux = mels.diff(dim=-1).square().mean(0).sqrt()
    joint = once.shape[-1] // CODEC.hop
    elsewhere = torch.cat([flux[6 : joint - 6], flux[joint + loop.shared + 2 : -4]])
    return float(flux[joint - 2 : joint + 2].max() / elsewhere.max())


def test_gradients_are_finite_and_reach_silence(tmp_path):
    """At the floor, at the ceiling and in noise; all frames of silence have one where asked."""
    path = written(tmp_path / "a.wav", notes()[0][50])
    asked = (
        Intensity.read("-20", ASKED), Melody.read("A4 C5", ASKED), Structure.read("ABA", ASKED), Loop.read("", ASKED),
        Inpaint.read(f"{path}@0.3-0.6", ASKED),
    )  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    for control in asked:
        for x in (
            torch.full((2, 1, 64, 32), -1.5),
            torch.full((2, 1, 64, 32), 1.5),
            torch.randn(2, 1, 64, 32, generator=rng),
        ):
            x.requires_grad_()
            loss = control.loss(x, {})
            (grad,) = torch.autograd.grad(loss.sum(), x)
            assert loss.shape == control.error(x, {}).shape == (2,) and loss.isfinite().all() and grad.isfinite().all()
            if control.name in ("intensity", "melody"):
                assert (grad.abs().amax(2) > 0).all()
            alone = control.loss(x[1:], {})
            assert torch.allclose(alone, loss[1:], rtol=1e-5)


def test_a_gradient_is_the_slope(tmp_path):
    path = written(tmp_path / "a.wav", notes()[0][50])
    x = CODEC.spectrogram(notes()[0][20:21]).clamp(-0.2, 1.2)  # away from the cuts
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for control in (
        Intensity.read("-20", ASKED), Melody.read("A4 C5", ASKED), Structure.read("ABA", ASKED), Loop.read("", ASKED),
        Inpaint.read(f"{path}@0.3-0.6", ASKED),
    ):  # fmt: skip
        y = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(control.loss(y, {}).sum(), y)
        slope = (control.loss(x + 1e-3 * step, {}) - control.loss(x - 1e-3 * step, {})) / 2e-3
        assert float((grad * step).sum()) == pytest.approx(float(slope), rel=0.02), control.name


def test_the_classifier_hears_classes_in_spectrograms():
    """As in the sounds themselves; the likelihood is that of the class asked for."""
    data = Tones(8, 8, 48)
    i = torch.arange(48)
    classes = {"timbre": i % 4, "pitch": i // 2, "rhythm": i // 4 % 4}
    sound = tones(**classes, seeds=i + 10**9)
    net = data.evaluator("val").extractor[0]
    x = CODEC.spectrogram(sound)
    for condition, right in classes.items():
        asked = [Label(ASKED, net, condition, k) for k in range(data.classes[condition])]
        for mels, least in ((asked[0].mels(x, {}), 0.95), (asked[0].listened(sound), 1.0)):
            losses = torch.stack([control.distance(mels) for control in asked])
            assert (losses.argmin(0) == right).float().mean() >= least, condition
            assert torch.allclose((-losses).exp().sum(0), torch.ones(48), atol=1e-5)
    y = x[:4].clone().requires_grad_()
    (grad,) = torch.autograd.grad(Label.read("timbre=saw", Asked((1, 64, 32), CODEC, data)).loss(y, {}).sum(), y)
    assert grad.isfinite().all() and (grad.flatten(1).norm(dim=1) > 0).all()
    with pytest.raises(ValueError, match="label needs windows of 1024 samples at 8000 Hz, .* 512 at 8000 Hz"):
        Label(Asked((1, 64, 64), Mel(8_000, 512)), net, "timbre", 0)


def test_waveforms_are_looked_at_through_a_codec_of_their_own():
    """The embedded codec's resolution, at the data's rate; gradient reaches the waveform."""
    asked = Asked((1, SAMPLES), data=Tones(8, 8, 8))
    sound = rising().clone().requires_grad_()
    control = Intensity.read("ramp:-40:-20", asked)
    assert (control.ear.size, control.ear.bands[0], control.frames) == (1_024, 64, 32)
    loss = control.loss(sound, {})
    assert 0 < loss.item() < 0.1 and control.heard(sound, {}).item() == pytest.approx(loss.item())
    (grad,) = torch.autograd.grad(loss.sum(), sound)
    assert grad.isfinite().all() and grad.abs().max() > 0
    assert controls.ear(44_100).bands[0] == 123
    with pytest.raises(ValueError, match="how many samples"):
        Intensity.read("-20", Asked((1, SAMPLES)))


def test_latents_are_decoded_with_gradient(tmp_path):
    tiny_audio = pytest.importorskip("tiny_audio", exc_type=ImportError)
    tiny_audio.stable_audio(tmp_path / "pipeline")
    codec = StableAudio.make_codec(tmp_path / "pipeline", {})
    z = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = controls.decoded(codec, z, {})
    assert torch.equal(found, codec.decode(z.detach(), {}))
    (grad,) = torch.autograd.grad(found.square().sum(), z)
    assert grad.isfinite().all() and (grad.flatten(1).norm(dim=1) > 0).all()
    with pytest.raises(ValueError, match="loop needs two frames of 0.032 seconds, sounds have 128 samples"):
        Loop.read("", Asked((4, 16), codec))


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    tiny_audio = pytest.importorskip("tiny_audio", exc_type=ImportError)
    return str(tiny_audio.clap_folder(tmp_path_factory.mktemp("clap") / "tiny"))


def test_a_text_is_compared_by_the_cosine(clap):
    """1 less that of the embeddings, of sounds and of spectrograms by the sound made of them."""
    data, heard = Tones(8, 8, 8, clap=clap), Clap(clap, ["a plucked string", "a flute"])
    sound = notes()[0][:4]
    cosines = heard.features(sound, RATE).float() @ heard.embedded(torch.arange(2)).T
    for k, text in enumerate(heard.prompts):
        control = Text.read(text, Asked((1, SAMPLES), data=data))
        assert torch.allclose(control.loss(sound, {}), 1 - cosines[:, k], atol=1e-6)
        assert torch.equal(control.error(sound, {}), control.heard(sound, {}))
    x = CODEC.spectrogram(sound)
    control = Text.read("a flute", Asked((1, 64, 32), CODEC, data))
    assert torch.allclose(control.loss(x, {}), control.heard(CODEC.decode(x, {}), {}), atol=1e-6)
    assert (cosines[:, 0] - cosines[:, 1]).abs().min() > 1e-4


@pytest.mark.parametrize("kind", ["wave", "griffin_lim", "vocoder", "audioldm2", "stable_audio"])
def test_a_sample_moves_towards_a_text(kind, clap, tmp_path):
    """Twelve steps of Adam on the sample itself."""
    import tiny_audio

    data, shape, codec = Tones(8, 8, 8, clap=clap), (1, SAMPLES), Codec()
    if kind == "griffin_lim":
        shape, codec = (1, 64, 32), CODEC
    elif kind == "vocoder":
        shape = (1, 8, 512)
        codec = Mel(size=64, num=8, hop=16, vocoder=HifiGan(str(tiny_audio.vocoder_folder(tmp_path))))
    elif kind != "wave":
        getattr(tiny_audio, kind)(tmp_path / kind)
        teacher = MusicPipeline(str(tmp_path / kind), written_prompts(tmp_path), seconds=0.006)
        shape, codec = teacher.event_shape, teacher.codec
    control = Text.read("a plucked string", Asked(shape, codec, data))
    x = 0.3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)) if kind != "wave" else notes()[0][:2]
    x = x.clone().requires_grad_()
    optimizer, losses = torch.optim.Adam([x], 0.002 if kind == "wave" else 0.05), []
    for _ in range(12):
        losses.append(control.loss(x, {}))
        (x.grad,) = torch.autograd.grad(losses[-1].sum(), x)
        assert x.grad.isfinite().all() and (x.grad.flatten(1).norm(dim=1) > 0).all()
        optimizer.step()
    assert (torch.stack(losses[-3:]).mean(0) < losses[0] - 1e-3).all(), torch.stack(losses)


def written_prompts(folder):
    (folder / "prompts.txt").write_text("a cat runs\n")
    return str(folder / "prompts.txt")


def test_texts_that_cannot_be_asked_for(clap, tmp_path):
    with pytest.raises(ValueError, match="say it, such as text='a plucked string'"):
        Text.read("  ", Asked((1, SAMPLES), data=Tones(8, 8, 8, clap=clap)))
    with pytest.raises(ValueError, match="none is given: say --data clap=DIR"):
        Text.read("a flute", Asked((1, SAMPLES), data=Tones(8, 8, 8)))
    with pytest.raises(ValueError, match="holds no CLAP model: give the folder of one"):
        Text.read("a flute", Asked((1, SAMPLES), data=Tones(8, 8, 8, clap=str(tmp_path))))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="does not load as a ClapModel"):
        Text.read("a flute", Asked((1, SAMPLES), data=Tones(8, 8, 8, clap=str(tmp_path))))


def test_music_names_its_controls():
    assert list(Tones(8, 8, 8).controls) == ["intensity", "melody", "structure", "inpaint", "loop", "label", "text"]


def gradients():
    x = torch.full((1, 1, 64, 32), -1.5).requires_grad_()
    (grad,) = torch.autograd.grad(Intensity.read("-20", ASKED).loss(x, {}).sum(), x)
    assert (grad.abs().amax(2) > 0).all()


RAMP, FLAT = test_a_rising_sound_has_the_curve_of_a_ramp, test_a_constant_curve_stays_constant
LEFT_OUT, PITCHES = (
    test_a_melody_counts_wrong_frames_and_leaves_out_the_others,
    test_all_pitches_of_all_timbres_have_their_class,
)
COSINES, ROUND, POWERS = (
    test_a_matrix_of_cosines,
    test_a_sound_that_comes_round_again_is_a_loop,
    test_powers_of_channels_are_averaged,
)


@pytest.mark.parametrize(
    "mutation",
    [
        Mutation("amplitudes, not powers", intensity, "2 * mels", "mels", POWERS),
        Mutation("channels add", intensity, ".mean(1)", ".sum(1)", POWERS),
        Mutation("sign of the target", Intensity.distance, "- self.target", "+ self.target", RAMP),
        Mutation("no edges", Heard.smooth, "weights.sum(0)", "weights.sum(0).max()", FLAT),
        Mutation("one frame late", Heard.smooth, "k - k[:, None]", "k - k[:, None] + 1", FLAT),
        Mutation("twice as wide", Heard.smooth, "self.rate / 2", "self.rate", FLAT),
        Mutation("-1 counts", Melody.mistake, "& (target != IGNORED)", "", LEFT_OUT),
        Mutation("a mean of all frames", Melody.distance, "/ self.asked", "/ self.frames", LEFT_OUT),
        Mutation("classes off by one", controls.tones, "transpose(0, 1)", "transpose(0, 1).roll(1, 0)", PITCHES),
        Mutation("sign of cosines", Melody.chroma, "SHARP * alike", "-SHARP * alike", PITCHES),
        Mutation("not centred", Structure.cosines, "found - found.mean(-1, keepdim=True)", "found", COSINES),
        Mutation("the level counts", Structure.cosines, "arange(1,", "arange(0,", COSINES),
        Mutation("one frame late", Loop.end, "self.frames - self.shared", "self.frames - self.shared + 1", ROUND),
        Mutation("windows outside", Loop.distance, "- self.edge + 1", "- self.edge + 2", ROUND),
        Mutation("no gradient at the floor", Heard.log_mel, ".detach()", "", gradients),
    ],
    ids=str,
)
def test_mutations_are_noticed(mutation):
    prove(mutation)
