"""The families of pipelines of sound by name."""

from domains.music.pipelines.audioldm2 import AudioLDM2
from domains.music.pipelines.stable_audio import StableAudio
from domains.music.pipelines.stable_audio_3 import StableAudio3

FAMILIES = {cls.__name__: cls for cls in (StableAudio, StableAudio3, AudioLDM2)}
