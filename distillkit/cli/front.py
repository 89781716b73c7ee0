"""The front door: words without dashes compose with Hydra, flags with dashes go to LightningCLI.

Help needs the standard library, `--show` needs Hydra, a run needs the rest: nothing is imported
before it is needed.
"""

import os
import re
import shlex
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from distillkit import cache, capabilities, runs
from distillkit.cli import catalogue, cluster, config, console, declarations, refusals
from distillkit.errors import LONGEST, Failure, Interrupted, UsageError, did_you_mean, one_line

TRAINING = {
    "fit": "train a student (or a teacher, with method=pretrain)",
    "validate": "measure a checkpoint on the validation data",
    "test": "measure a checkpoint on the test data",
}
OTHERS = {
    "sample": "draw samples from a student folder",
    "optimize": "find the noise whose samples have what is asked for",
    "evaluate": "measure a student folder against its teacher and real data",
    "compare": "show runs, or those of a sweep, in one table and one plot",
    "export": "write a student folder in a format for other programs",
    "encode": "make latents of a data set once, for teacher=diffusers",
    "plan": "say what a fit takes, before it: memory, passes, time",
    "list": "show domains and methods, and which go together",
    "doctor": "check this machine and its packages",
}
VERBS = TRAINING | OTHERS
HOMES = {  # of a verb that needs no Trainer: the module in this folder, and the function that takes the rest of the command line
    **{verb: ("products", verb) for verb in ("sample", "evaluate")},
    "optimize": ("optimize", "optimize"),
    "compare": ("compare", "compare"),
    "export": ("exports", "export"),
    "encode": ("encode", "encode"),
    "plan": ("plan", "plan"),
    "list": ("matrix", "show"),
    "doctor": ("doctor", "doctor"),
}

WAY = 3.0  # seconds in which several processes find the same error
USAGE = "usage: python -m distillkit VERB [group=choice | key=value ...] [--flags] [-m]"
EXAMPLES = """\
examples:
  python -m distillkit fit domain=toy method=sid
  python -m distillkit fit domain=image method=dmd model.num_steps=4 trainer.max_steps=500 --out runs/mine
  python -m distillkit fit domain=toy method=dmd,sid seed_everything=0,1,2 -m
  python -m distillkit compare runs/sweep-1"""
FLAGS = """\
flags:
  --out DIR      run folder (default: runs/DOMAIN-METHOD-NUMBER)
  --show         print the composed configuration and stop
  --ckpt_path F  continue from a checkpoint: in its own run folder, or in the one of --out; `last`: start or go on there
  --strict       stop where the run would warn of a cause of failure (docs/read_your_curves.md)
  --no-cache     make the teacher's samples anew, and keep none (docs/runs.md)
  --config F     run RUN/config.yaml again (with flags only, no words)
  -m             sweep: `a=1,2 b=x,y` makes four runs, and compares them
  --chain        with -m: each run begins with the student of the one before, as in method=hyper_sd,feedback,dmd
  --debug        show tracebacks
  --help=all     every flag of LightningCLI (--trainer.X, --print_config ...); --model.help explains the chosen model"""

ALWAYS_VALUED = ("--out", "--config", "-c", "--ckpt_path")  # the next token is theirs even if it has a `=`
SWITCHES = {
    "--show": "show",
    "--strict": "strict",
    "--no-cache": "no_cache",
    "-m": "sweep",
    "--multirun": "sweep",
    "--chain": "chain",
    "-h": "help",
    "--help": "help",
}


@dataclass
class Call:
    """A command line, sorted."""

    words: list[str] = field(default_factory=list)  # for Hydra
    flags: list[list[str]] = field(default_factory=list)  # for LightningCLI: [flag] or [flag, value]
    out: str | None = None
    show: bool = False
    strict: bool = False
    no_cache: bool = False
    sweep: bool = False
    chain: bool = False
    help: bool = False

    def value(self, *names: str) -> str | None:
        """The last value given to a flag; empty if its value is missing."""
        found = None
        for flag in self.flags:
            name, equals, value = flag[0].partition("=")
            if name in names:
                found = value if equals else "".join(flag[1:])
        return found


def split(tokens: Sequence[str]) -> Call:
    """Sort tokens into words and flags.

    A word without `=` right after a flag without `=` is the flag's value.
    """
    call = Call()
    waiting = False  # the last token was a flag that may take a value
    for token in tokens:
        if re.match(r"-(?!\d|\.\d|inf$|nan$|$)", token):
            if token in SWITCHES:
                setattr(call, SWITCHES[token], True)
            else:
                call.flags.append([token])
            waiting = token not in SWITCHES and "=" not in token
        elif waiting and (call.flags[-1][0] in ALWAYS_VALUED or ("=" not in token and token[:1] not in ("+", "~"))):
            call.flags[-1].append(token)
            waiting = False
        else:
            call.words.append(token)
            waiting = False
    call.flags = [at_home(flag) for flag in call.flags]
    call.out = call.value("--out")
    call.flags = [flag for flag in call.flags if flag[0].partition("=")[0] != "--out"]
    if call.out == "":
        raise UsageError("--out needs a folder, such as --out runs/mine")
    return call


def at_home(flag: list[str]) -> list[str]:
    """A flag whose value is a path, with its `~` expanded."""
    name, equals, value = flag[0].partition("=")
    if name not in ALWAYS_VALUED:
        return flag
    return [f"{name}={os.path.expanduser(value)}"] if equals else [name, *map(os.path.expanduser, flag[1:])]


def help_text(verb: str | None = None, words: Sequence[str] = ()) -> str:
    """The text of `--help`.

    A search path among `words` adds its groups and choices; other words have no effect.
    """
    if verb:
        head = f"{USAGE.replace('VERB', verb)}\n\n{verb}: {VERBS[verb]}."
    else:
        head = USAGE + "\n\nverbs:\n" + "\n".join(f"  {name:<10} {text}" for name, text in VERBS.items())
    known = {group: names for group, names in catalogue.groups(words).items() if names and group != "recipe"}
    choices = "\n".join(f"  {group:<11} {' '.join(names)}" for group, names in known.items())
    return (
        f"{head}\n\ngroups and their choices (then any key, such as model.student.lr=1e-4; --show prints them all):\n{choices}"
        f"\n\n{FLAGS}\n\n{EXAMPLES}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0: done; 1: failed; 2: wrong usage; 130: interrupted.
    """
    console.forgive()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        with console.warnings_in_words():
            return run([token for token in argv if token != "--debug"], debug)
    except KeyboardInterrupt:
        if runs.rank() == 0:
            print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as error:  # argparse and LightningCLI, after help or --print_config
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BrokenPipeError:  # `... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (kept open until the interpreter ends)
        return 1
    except Interrupted as error:
        if runs.rank() == 0:  # of processes that stop together
            print(one_line(error, LONGEST), file=sys.stderr)
        return 130
    except Exception as error:
        give_way()
        if debug:
            traceback.print_exc()
        if isinstance(error, UsageError | Failure):
            print(f"error: {one_line(error, LONGEST)}", file=sys.stderr)
        elif isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", str(error)):
            mend = "ask for fewer samples, a smaller batch or a smaller model"
            print(f"error: there is not enough memory: {mend} ({one_line(error, 200)})", file=sys.stderr)
        elif isinstance(error, OSError) and error.filename and error.strerror:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        else:
            hint = "" if debug else " (--debug shows the traceback)"
            print(f"error: {type(error).__name__}: {one_line(error)}{hint}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def give_way() -> None:
    """Waits for the first process of a run, if this is another one, to say the same error.

    It then ends this one, see `cli.lightning.CLI`; so does torchrun.
    """
    with suppress(KeyboardInterrupt, ValueError):  # where its rank is no number, that is the error
        if runs.rank() > 0:
            time.sleep(WAY)


def run(tokens: Sequence[str], debug: bool = False) -> int:
    if not tokens or tokens[0] in ("-h", "--help", "help"):
        print(help_text(words=tokens[1:]))
        return 0
    for token in tokens:
        if re.search("[\ud800-\udfff]", token):
            raise UsageError(f"cannot read {token!r}: it is not UTF-8; give the file another name")
    verb, *rest = tokens
    if verb == "--version":
        from distillkit import __version__

        print(__version__)
        return 0
    if "=" in verb:
        raise UsageError(f"{verb!r} is no verb: say first what to do, such as fit {verb}")
    if verb not in VERBS:
        raise UsageError(f"no verb {verb!r}{did_you_mean(verb, VERBS)}; there are: {', '.join(VERBS)}")
    runs.surroundings()
    if verb in OTHERS:
        module, work = HOMES[verb]
        return getattr(import_module(f"distillkit.cli.{module}"), work)(rest) or 0
    call = split(rest)
    if call.help:
        print(help_text(verb, call.words))
        return 0
    if call.value("--config", "-c") is None:
        refuse_words_as_flags(call)
    if call.chain:
        refuse_chain(verb, call)
    if not call.sweep:
        return train(verb, call)
    if call.value("--config", "-c") is not None:
        raise UsageError("-m sweeps over words, which --config does not take: leave one of them out")
    if call.show:
        raise UsageError("--show shows one run, not a sweep: leave -m out, and give each word one value")
    from distillkit.cli.sweeps import sweep

    switches = [
        flag for flag, given in (("--no-cache", call.no_cache), ("--strict", call.strict), ("--debug", debug)) if given
    ]
    return sweep(verb, call.words, [*sum(call.flags, []), *switches], call.out, call.chain, call.value("--ckpt_path"))


def refuse_chain(verb: str, call: Call) -> None:
    """Refuse a chain that is no sweep of `fit`, or whose runs would begin with another student."""
    if verb != "fit":
        raise UsageError(f"--chain hands on students that are trained, and {verb} trains none: it goes with fit")
    if not call.sweep:
        raise UsageError(
            "--chain is a row of runs: list them in a word, such as method=hyper_sd,feedback,dmd, and add -m"
        )
    if call.value("--ckpt_path") is not None:
        raise UsageError(
            "--ckpt_path goes on with one run, and every run of a chain would: continue the one that stopped without --chain"
        )
    for word in call.words:
        if re.match(r"[+~]*(student|model\.student_maker)(?=[.=@]|$)", word):
            raise UsageError(f"each run of a chain begins with the student of the one before: leave {word} out")


def refuse_words_as_flags(call: Call) -> None:
    """Refuse `--domain=image`, which is written as a word."""
    known = catalogue.groups(call.words)
    for flag in call.flags:
        name, _, value = "=".join(flag).lstrip("-").partition("=")
        group = name in known and (name not in refusals.HANDED_OVER or value in known[name])
        if group or name.partition(".")[0] in refusals.SCRATCH:
            raise UsageError(f"{' '.join(flag)} is a word, not a flag: write {shlex.quote(f'{name}={value}')}")


def train(verb: str, call: Call, work: Callable[..., int] | None = None) -> int:
    """One run of a training verb; `work` takes the place of `lightning.run`."""
    cfg, name = None, ""
    flags = [token for flag in call.flags for token in (["--help"] if flag == ["--help=all"] else flag)]
    if (rerun := call.value("--config", "-c")) is not None:
        check_rerun(rerun, call)
        name = runs.name_of(rerun)
    else:
        cluster.refuse_one(call.words)
        cfg, choices = config.compose(call.words)
        if call.show:
            show(cfg, choices)
            return 0
        tell_what_is_lost(cfg, call.words)
        name = f"{choices.get('domain', 'run')}-{choices.get('method', verb)}"
        if helps := explanations(flags, cfg):  # before values that have no default are asked for
            return lightning_run()(verb, helps, out=call.out, name=name)
        handed = config.hand_over(cfg)
        by_hand = any(
            "_target_" in word or word.endswith("=null") for word in call.words
        )  # Lightning's parser judges it
        if not by_hand and all(flag[0].startswith("--ckpt_path") for flag in call.flags):
            refuse_what_lacks(handed)
        typed = {"method": catalogue.word_of(choices, [*call.words, *flags])}
        flags = ["--config", config.text(handed | typed), *flags]

    kept = None if call.no_cache else cache.of_the_user()
    try:
        with cache.using(kept):
            return (work or lightning_run())(verb, flags, out=call.out, name=name, strict=call.strict)
    except UsageError as error:
        raise UsageError(refusals.as_typed(str(error), cfg) if cfg else error) from error


def check_rerun(file: str, call: Call) -> None:
    """Refuse a `--config` that is no configuration of this version, and words beside it."""
    if call.words or call.show:
        change = f" --{call.words[0].lstrip('+')}" if call.words and "=" in call.words[0] else ""
        raise UsageError(
            f"--config brings a whole configuration, so change it with flags, not words:{change or ' --a.b=c'}"
        )
    if not os.path.isfile(file):
        raise UsageError(f"--config: there is no file {file[:200]}")
    from distillkit.files import read_yaml

    try:
        recorded = read_yaml(file)
    except ValueError as error:
        raise UsageError(f"--config: {error}") from error
    refusals.refuse_moved(recorded, file)


def tell_what_is_lost(cfg: Any, words: Sequence[str]) -> None:
    """Prints a note for each word that changes nothing."""
    for key in refusals.unused(cfg, words):
        mend = "; a student with another network is student=fresh" if key == "network" else ""
        note(f"nothing in this run uses {key!r}, so what the command says about it changes nothing{mend}")
    for key, times in Counter(word.lstrip("+").partition("=")[0] for word in words).items():
        if times > 1:
            note(f"{key} is given {times} times, and the last one counts")


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def refuse_what_lacks(handed: dict[str, Any]) -> None:
    """Refuse a method that needs more than teacher and data offer, as `CLI` does.

    This is done before torch and Lightning are imported. Silent where the sources do not tell.
    """
    reason = None
    with suppress(Exception):
        reason = capabilities.lacking(handed, declarations.read)
    if reason:
        raise UsageError(reason)


def explanations(flags: Sequence[str], cfg: Any) -> list[str]:
    """`--model.help` and `--data.help` among the flags, with the class that was chosen."""
    chosen = {f"--{part}.help": (cfg.get(part) or {}).get("_target_") for part in ("model", "data")}
    return [f"{flag}={chosen[flag]}" for flag in flags if chosen.get(flag)]


def lightning_run() -> Callable[..., int]:
    """`lightning.run`, whose import takes seconds."""
    from distillkit.cli.lightning import run

    return run


def show(cfg: Any, choices: dict[str, str]) -> None:
    from omegaconf import OmegaConf

    config.hand_over(cfg)  # so that a broken interpolation is told here too
    print("# " + " ".join(f"{group}={choice}" for group, choice in choices.items()))
    print(OmegaConf.to_yaml(cfg), end="")
