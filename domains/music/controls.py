"""What music can be asked for: the controls of DITTO (arXiv 2401.12179, section 4).

But for `text` they look at log-mels: natural logarithms of magnitudes, of which a full-scale sine
has about 1.
B: batch; C: channels; M: bands; F: frames; K: pitch classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.codec import Codec
from distillkit.control.control import Asked, Control
from distillkit.pipelines.codec import PipelineCodec
from domains.music import targets
from domains.music.clap import Clap
from domains.music.clip import frequency
from domains.music.codec import WIDEST, Mel
from domains.music.features import FLOOR, Classifier, spectrogram, window
from domains.music.mel import bands, logarithm, unbanded
from domains.music.targets import IGNORED

DECIBEL = 20 / math.log(10)  # in a unit of log-mels
LEAST = 1e-7  # of squared magnitudes: -70 dB
SMOOTH = 0.25  # seconds, the window of moving averages
QUIET = 20.0  # dB below the loudest frame, where a sound to go by has no note
KEYS = range(48, 96)  # MIDI numbers, C3 to B6: the notes that melodies are told by
SHARP = 20.0  # logits of pitch classes in units of cosines
COEFFICIENTS = 20  # of the cosine transform of a frame
JOINT = 0.25  # seconds at the end that cross-fade into the start
REFINED = 10  # steps from bands to magnitudes, see `unbanded`
EAR = (0.128, 150.0, 30.0)  # of sounds without spectrograms: seconds of a window, lowest Hz, mels of a band


class Heard(Control):
    """Base of the controls: log-mels of samples.

    A codec of spectrograms has them without a vocoder. Other samples are waveforms, or latents that
    a pipeline's autoencoder decodes, with gradient; they are looked at through `ear`.
    """

    def __init__(self, asked: Asked):
        super().__init__(asked)
        self.channels, self.samples = self.codec.data_shape(asked.event_shape)
        self.ear = self.codec if isinstance(self.codec, Mel) else ear(rate_of(asked))
        self.frames, self.rate = self.samples // self.ear.hop, self.ear.sample_rate / self.ear.hop
        self.seconds = self.frames / self.rate
        if self.frames < 2:
            raise ValueError(
                f"{self.name} needs two frames of {1 / self.rate:.3g} seconds, sounds have {self.samples} samples"
            )
        self.times = [k / self.rate for k in range(self.frames)]

    @abstractmethod
    def distance(self, mels: Tensor) -> Tensor:
        """The loss [B] of log-mels [B, C, M, F]."""

    def mistake(self, mels: Tensor) -> Tensor:
        """The error [B] of log-mels [B, C, M, F]."""
        return self.distance(mels)

    def loss(self, x, cond):
        return self.distance(self.mels(x, cond))

    def error(self, x, cond):
        return self.mistake(self.mels(x, cond))

    def heard(self, data, cond):
        return self.mistake(self.listened(data))

    def mels(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Log-mels of samples in the space of the diffusion."""
        return self.log_mel(x) if self.ear is self.codec else self.listened(decoded(self.codec, x, cond))

    def listened(self, sound: Tensor) -> Tensor:
        """Log-mels of sounds [B, C, N]."""
        return self.log_mel(self.ear.spectrogram(sound))

    def log_mel(self, x: Tensor) -> Tensor:
        """Log-mels of normalised ones, cut as the codec cuts them.

        The gradient is that of no cut, for otherwise silence could not become louder.
        """
        whole = x.float() * (2 * self.ear.std) + self.ear.mean
        return whole + (self.ear.log_mel(x.float().clamp(-WIDEST, WIDEST)) - whole).detach()

    def reference(self, path: str | Path) -> Tensor:
        """Log-mels [1, C, M, F] of the beginning of a sound file."""
        return self.listened(targets.sound(Path(path), self.ear.sample_rate, self.channels, self.samples)[None])

    def smooth(self, x: Tensor) -> Tensor:
        """Moving averages of curves [..., F] under a window of Hann's, of what is in the clip."""
        k = torch.arange(x.shape[-1]).to(x)
        apart = (k - k[:, None]).abs() / (SMOOTH * self.rate / 2)
        weights = 0.5 + 0.5 * (math.pi * apart.clamp_max(1)).cos()
        return x @ (weights / weights.sum(0))

    def range(self) -> tuple[float, float]:
        """The intensity in dB of silence and of the loudest wave."""
        wave = torch.sin(2 * math.pi * (torch.arange(self.ear.size) + 0.5) / 16).sign()
        low, high = intensity(self.listened(torch.stack([torch.zeros_like(wave), wave])[:, None]))[:, 2].tolist()
        return low, high


class Intensity(Heard):
    """How loud it is when (DITTO, "intensity"): the mean squared difference of curves in dB.

    `I = 10 log10(sum of squared magnitudes + 1e-7)` of each frame, averaged over a quarter of a
    second.
    """

    name, unit = "intensity", "dB^2"

    def __init__(self, asked: Asked, target: Tensor):
        super().__init__(asked)
        self.target = target

    @classmethod
    def read(cls, text, asked):
        """A level in dB, `ramp:-40:-10`, a .csv file or a sound; see `targets.levels`."""
        made = cls(asked, torch.empty(0))
        if targets.is_sound(text):
            made.target = made.curve(made.reference(text))[0]
            return made
        made.target = targets.levels(text, made.times)
        low, high = made.range()
        if made.target.min() < low - 0.01 or made.target.max() > high:
            raise ValueError(
                f"intensity={text} asks for {float(made.target.min()):g} to {float(made.target.max()):g} dB, but the "
                f"spectrograms have {low:.1f} dB (silence) to {high:.1f} dB (a square wave of full scale)"
            )
        return made

    def distance(self, mels):
        return (self.curve(mels) - self.target.to(mels)).square().mean(-1)

    def curve(self, mels: Tensor) -> Tensor:
        """Intensities [B, F] in dB, of all channels' mean power."""
        return self.smooth(intensity(mels))

    def curves(self, x, cond):
        return {"target": self.target, "sample": self.curve(self.mels(x, cond))[0]}


class Melody(Heard):
    """Which note is played when (DITTO, "melody"): the cross-entropy of pitch classes.

    A frame has logits `20 cos(a, b)`: a is the frame and b a tone of the class, a sine, a sawtooth
    or a square wave of any octave; both are square roots of magnitudes, less that of the floor. The
    tones of a class count by the logarithm of the sum of their exponentials. Frames of class -1 may
    hold any note. The error is the share of frames with the wrong class.
    """

    name, unit = "melody", "of the frames"

    def __init__(self, asked: Asked, target: Tensor):
        super().__init__(asked)
        self.target, self.tones = target, self.rooted(tones(self.ear))

    @classmethod
    def read(cls, text, asked):
        """Names such as `A4 C#5 - E5`, a .mid file or a sound; see `targets.melody`."""
        made = cls(asked, torch.empty(0))
        if not targets.is_sound(text):
            made.target = targets.melody(text, made.times)
        elif ((target := made.played(made.reference(text))) == IGNORED).all():
            raise ValueError(f"{text} is silent where the model's sounds are")
        else:
            made.target = target
        return made

    def distance(self, mels):
        target = self.target.to(mels.device).expand(len(mels), -1)
        return F.cross_entropy(self.chroma(mels), target, ignore_index=IGNORED, reduction="none").sum(-1) / self.asked

    def mistake(self, mels):
        target = self.target.to(mels.device)
        return ((self.chroma(mels).argmax(1) != target) & (target != IGNORED)).sum(-1) / self.asked

    def curves(self, x, cond):
        target = self.target.float().masked_fill(self.target == IGNORED, math.nan)
        return {"target": target, "sample": self.chroma(self.mels(x, cond))[0].argmax(0).float()}

    @property
    def asked(self) -> int:
        """The number of frames that must hold a class."""
        return int((self.target != IGNORED).sum())

    def chroma(self, mels: Tensor) -> Tensor:
        """Logits of pitch classes, from C to B, [B, K, F]."""
        mono = mels.logsumexp(1) - math.log(mels.shape[1])
        alike = torch.einsum("bfm,kim->bkif", self.rooted(mono.mT), self.tones.to(mels))
        return (SHARP * alike).logsumexp(2)

    def rooted(self, mels: Tensor) -> Tensor:
        """Roots of magnitudes above the floor, [..., M], of length 1; silence is shorter."""
        return F.normalize((0.5 * (mels - math.log(self.ear.floor))).exp() - 1, dim=-1, eps=1.0)

    def played(self, mels: Tensor) -> Tensor:
        """The pitch classes [F] of log-mels [1, C, M, F], -1 where they are quiet."""
        loud = intensity(mels)[0]
        heard = loud > max(float(loud.max()) - QUIET, self.range()[0] + 1)
        return self.chroma(mels)[0].argmax(0).masked_fill(~heard, IGNORED)


class Structure(Heard):
    """Which parts are alike (DITTO, "musical structure"): the mean squared error of cosines.

    The cosines [F, F] are those between frames, by the coefficients 1 to 20 of the cosine transform
    of log-mels (as MFCC), smoothed over a quarter of a second, less their mean over the clip. Alike
    frames should have 1, and frames of different ones of n parts -1 / (n - 1), the least that all
    of them can have.
    """

    name = "structure"

    def __init__(self, asked: Asked, target: Tensor):
        super().__init__(asked)
        self.target = target

    @classmethod
    def read(cls, text, asked):
        """Letters such as `ABA`, of parts of equal duration, or a sound."""
        made = cls(asked, torch.empty(0))
        if targets.is_sound(text):
            made.target = made.cosines(made.reference(text))[0]
        else:
            part = targets.form(text, made.frames)
            made.target = torch.where(part == part[:, None], 1.0, -1 / int(part.max()))
        return made

    def distance(self, mels):
        return (self.cosines(mels) - self.target.to(mels)).square().mean((1, 2))

    def cosines(self, mels: Tensor) -> Tensor:
        """The cosines [B, F, F] between frames."""
        num = mels.shape[2]
        k, m = torch.arange(1, min(COEFFICIENTS, num - 1) + 1)[:, None], torch.arange(num)
        transform = (math.pi / num * (m + 0.5) * k).cos().to(mels) * (2 / num) ** 0.5
        found = self.smooth(transform @ mels).flatten(1, 2)
        found = F.normalize(found - found.mean(-1, keepdim=True), dim=1, eps=1e-3)
        return found.mT @ found


class Inpaint(Heard):
    """What is known of a sound stays (DITTO, "inpainting"): the mean squared difference in dB^2.

    It is taken over the bands of all frames whose windows lie in the known part. If the unknown
    part reaches the end, or the beginning, this is "outpainting".
    """

    name, unit = "inpaint", "dB^2"

    @classmethod
    def read(cls, text, asked):
        """`FILE@0.2-0.6`, a sound and the seconds of it to fill in; see `targets.span`."""
        made = cls(asked)
        path, start, end = targets.span(text, made.seconds)
        reach = made.ear.size / made.ear.sample_rate / 2
        made.known = torch.tensor([time + reach <= start or time - reach >= end for time in made.times])
        if not made.known.any():
            raise ValueError(
                f"inpaint={text} leaves nothing that is known for {2 * reach:.3g} seconds, the window of a frame"
            )
        made.target = made.reference(path)[..., made.known]
        return made

    def distance(self, mels):
        off = mels[..., self.known.to(mels.device)] - self.target.to(mels)
        return DECIBEL**2 * off.square().mean((1, 2, 3))


class Loop(Heard):
    """The end goes on as the clip starts (DITTO, "looping"): the mean squared difference in dB^2.

    The last quarter of a second is what a player fades into the first one, and the loop is shorter
    by it. Those frames of both are compared whose windows lie in the clip.
    """

    name, unit = "loop", "dB^2"

    def __init__(self, asked: Asked):
        super().__init__(asked)
        self.edge = self.ear.size // self.ear.hop // 2  # frames
        self.shared = max(round(JOINT * self.rate), 2 * self.edge)
        if self.frames < 2 * self.shared:
            raise ValueError(f"a loop needs {2 * self.shared / self.rate:.3g} seconds, sounds have {self.seconds:.3g}")

    @classmethod
    def read(cls, text, asked):
        """No target: `loop` alone."""
        if text:
            raise ValueError(f"loop asks for nothing else: say loop alone, not loop={text}")
        return cls(asked)

    def distance(self, mels):
        first, last = (part[..., self.edge : self.shared - self.edge + 1] for part in (mels, self.end(mels)))
        return DECIBEL**2 * (last - first).square().mean((1, 2, 3))

    def end(self, mels: Tensor) -> Tensor:
        """The frames that are faded into the first ones."""
        return mels[..., self.frames - self.shared :]


class Label(Heard):
    """What the classifier of `domains.music.features` hears: a class's negative log-likelihood.

    It sees the magnitudes that a vocoder would be given, in its own bands.
    """

    name, unit = "label", "nats"

    def __init__(self, asked: Asked, classifier: Classifier, condition: str, number: int):
        super().__init__(asked)
        self.classifier, self.condition, self.number = classifier, condition, number
        seen = classifier.rate, window(classifier.rate)
        if self.ear is self.codec and (self.ear.sample_rate, self.ear.size) != seen:
            raise ValueError(
                f"label needs windows of {seen[1]} samples at {seen[0]} Hz, which the classifier has; the codec has "
                f"{self.ear.size} at {self.ear.sample_rate} Hz"
            )

    @classmethod
    def read(cls, text, asked):
        """`timbre=saw` or `timbre=1`, a class of the data."""
        condition, number = targets.class_of(text, asked.data)
        return cls(asked, asked.data.evaluator("val").extractor[0], condition, number)

    def distance(self, mels):
        net = self.classifier.to(mels.device)
        target = torch.full([len(mels)], self.number, device=mels.device)
        return F.cross_entropy(net.logits(net.features(mels))[self.condition], target, reduction="none")

    def mels(self, x, cond):
        if self.ear is not self.codec:
            return super().mels(x, cond)
        found = unbanded(self.log_mel(x).exp(), self.ear.weights(x.device), REFINED)
        return logarithm(found, bands(self.ear.sample_rate, self.ear.size, device=x.device), FLOOR)

    def listened(self, sound):
        return spectrogram(sound, self.ear.sample_rate)


class Text(Control):
    """What a text says: 1 less the cosine of the embeddings that the user's CLAP has of both.

    DITTO-2 (arXiv 2405.20289) asks models that know no texts so.
    """

    name, unit = "text", "1 - cosine"

    def __init__(self, asked: Asked, clap: Clap):
        super().__init__(asked)
        self.rate, self.clap, self.target = rate_of(asked), clap, clap.embedded(torch.tensor([0]))

    @classmethod
    def read(cls, text, asked):
        """Words such as `a plucked string`."""
        if not text.strip():
            raise ValueError("text asks for what a sound should be: say it, such as text='a plucked string'")
        if not (folder := getattr(asked.data, "clap", None)):
            raise ValueError("text is heard by a CLAP model, and none is given: say --data clap=DIR, the folder of one")
        return cls(asked, Clap(folder, [text]))

    def loss(self, x, cond):
        return self.distance(decoded(self.codec, x, cond))

    def heard(self, data, cond):
        return self.distance(data)

    def distance(self, sound: Tensor) -> Tensor:
        """The loss [B] of sounds [B, C, N]."""
        self.clap.device = sound.device
        return 1 - (self.clap.heard(sound, self.rate) * self.target.to(sound.device)).sum(1)


def intensity(mels: Tensor) -> Tensor:
    """Intensities [B, F] in dB of log-mels, of all channels' mean power."""
    return 10 * ((2 * mels).exp().sum(2).mean(1) + LEAST).log10()


def tones(codec: Mel) -> Tensor:
    """Log-mels [12, 12, M] of tones by pitch class, from C to B, with four octaves of three waves.

    These are a sine, a sawtooth and a square wave; no overtone lies above the bands.
    """
    time, found = torch.arange(codec.size) / codec.sample_rate, []
    for hertz in map(frequency, KEYS):
        k = torch.arange(1, 2 + int(codec.bands[2] / hertz))
        audible = (k * hertz < 0.95 * codec.bands[2]) / k
        partials = torch.sin(2 * math.pi * hertz * k[:, None] * time)
        waves = torch.stack([audible * (k == 1), audible, audible * (k % 2)]) @ partials
        found.append(codec.log_mel(codec.spectrogram(0.3 * waves[:, None]))[:, 0, :, 2])
    return torch.stack(found).unflatten(0, (-1, 12)).transpose(0, 1).flatten(1, 2)


def ear(rate: int) -> Mel:
    """The codec through which sounds without one are looked at: the embedded one's resolution."""
    window, low, width = EAR
    high = rate / 2
    mels = 2595 * math.log10((700 + high) / (700 + low))
    return Mel(rate, 2 ** round(math.log2(window * rate)), round(mels / width), low)


def rate_of(asked: Asked) -> int:
    """Samples a second of the data, in Hz."""
    rate = getattr(asked.codec, "sample_rate", None) or getattr(asked.data, "rate", None)
    if rate is None:
        raise ValueError("neither the model nor its data say how many samples its sounds have a second")
    return rate


def decoded(codec: Codec, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """Sounds [B, C, N] with gradient."""
    if not isinstance(codec, PipelineCodec):
        return codec.decode(x, cond)
    codec.vae.to(x.device)
    mean, std = (value.to(x.device) for value in codec.units())
    return torch.cat([codec.out_of(one * std + mean).clamp(-1, 1) for one in x.float().split(1)])


CONTROLS = {kind.name: kind for kind in (Intensity, Melody, Structure, Inpaint, Loop, Label, Text)}
