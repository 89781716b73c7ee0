"""The verb on student folders that writes them for other programs: export."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distillkit.cli.products import new_path
from distillkit.codec import Codec
from distillkit.errors import Arguments, Failure, UsageError, one_line, optional
from distillkit.files import write_atomic
from distillkit.networks.routed import Routed
from distillkit.spec import from_spec
from distillkit.students.base import Student
from distillkit.students.few_step import FewStepStudent
from distillkit.students.provenance import allow, allow_pipeline, load

FORMATS = {  # and what each writes
    "safetensors": "one file with the weights and student.yaml",
    "onnx": "one graph, noise and conditions to samples",
    "diffusers": "of a student of a pipeline: the pipeline with the student in it",
    "lora": "of adapters on a pipeline: what its load_lora_weights reads",
}
ROUNDING = 1e-3  # largest difference of an exported student with another order of operations
MOST = 63  # samples while a graph is traced: U-Nets of diffusers copy larger batches, to the same effect
LEAST = 3  # of a free size in a graph: PyTorch's exporter takes sizes of 1 and 2 for special cases


def export(argv: Sequence[str]) -> int:
    """`export STUDENT --format FORMAT`: one file or folder, reloaded and compared."""
    args = _asked(argv)
    student = load(args.student, args.trust, args.pipeline)
    folder = args.format in ("diffusers", "lora")
    if reason := student.not_exported:
        raise UsageError(f"{reason}: use its folder")
    out = new_path(args.out or Path(args.student) / (args.format if folder else f"student.{args.format}"))
    if folder:
        error = to_folder(student, out, args.format, args.push or out.name)
        print(f"{out}: reloaded, largest difference from the student {error:.1e} of its largest latent")
        print(f"the call that makes its samples: {out / 'README.md'}")
        if args.push:
            print(f"uploaded: {push(out, args.push)}")
        return 0
    error = to_onnx(student, out) if args.format == "onnx" else to_safetensors(student, out, args.trust)
    if type(student.codec) is not Codec and not (args.format == "onnx" and student.codec.in_graph):
        print(
            f"the file gives samples of shape {list(student.event_shape)} undecoded: data are made of them by the folder"
        )
    print(f"{out}: reloaded, largest difference from the student {error:.1e}")
    return 0


def _asked(argv: Sequence[str]) -> Namespace:
    """The arguments of `export`."""
    parser = Arguments(prog="distillkit export", description="Write a student in a format for other programs.")
    parser.add_argument("student", help="a student folder, or the run folder around it")
    formats = "; ".join(f"{name}, {what}" for name, what in FORMATS.items())
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="safetensors", help=f"{formats} (default safetensors)"
    )
    parser.add_argument(
        "--out", type=Path, help="the file or folder (default: student.FORMAT, or FORMAT, in the folder)"
    )
    parser.add_argument(
        "--push", metavar="NAME", help="of diffusers and lora: a repository on the hub, private if new, to upload it to"
    )
    allow(parser)
    allow_pipeline(parser)
    args = parser.parse_args(argv)
    if args.push and args.format not in ("diffusers", "lora"):
        raise UsageError(f"--push uploads folders, and {args.format} is one file: say --format diffusers or lora")
    return args


def to_folder(student: Student, out: Path, kind: str, name: str) -> float:
    """Write a student of a pipeline for diffusers, see `distillkit.pipelines.export`."""
    from distillkit.pipelines.export import to_lora, to_pipeline

    try:
        return (to_pipeline if kind == "diffusers" else to_lora)(student, out, name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def push(folder: Path, name: str) -> str:
    """Upload a folder to a repository on the hub, which is made, private, if there is none.

    Returns:
        The address of what was uploaded.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        name = api.create_repo(name, private=True, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:  # no network, no token, no permission, no such name
        raise Failure(
            f"{folder} is written, but could not be uploaded to {name}: {one_line(error, 200)}; log in "
            f"with hf auth login, or give a name that is yours"
        ) from None


def to_safetensors(student: FewStepStudent, path: Path, trust: Sequence[str] = ()) -> float:
    """Write weights and student.yaml in one file (the yaml as json, metadata key `student`).

    Returns the largest difference of the reloaded student: it must be zero, or rounding error where
    adapters are merged with their base.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    merged = student.merged()
    state = {name: value.contiguous() for name, value in merged.weights.state_dict().items()}
    write_atomic(path, lambda temporary: save_file(state, temporary, {"student": json.dumps(merged.config)}))
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["student"])
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    facts = ("times", "event_shape", "classes", "context", "renoise", "noise_scale", "gamma")
    plain = {key: config[key] for key in facts if key in config}
    if "start" in config:
        plain["start"] = from_spec(config["start"], tuple(trust))
    kind, denoiser = type(student), from_spec(config["denoiser"], tuple(trust))
    plain |= kind.own(config, path, tuple(trust))
    again = kind(denoiser, **plain, codec=student.codec, examples=student.examples).eval()
    again.weights.load_state_dict(read)
    tolerance = 0.0 if merged is student else ROUNDING
    return _difference(path, *(one.sample(8, decode=False) for one in (student, again)), tolerance)


def inputs(student: FewStepStudent) -> list[str]:
    """The student's conditions by name: classes, context, then told numbers."""
    return [*student.classes, *student.context, *student.told]


class Flat(nn.Module):
    """A student as a function of plain tensors: noise [B, K, *event_shape], then the conditions.

    K is 1 unless the student re-noises. Samples are decoded if the codec can join a graph.
    """

    def __init__(self, student: FewStepStudent):
        super().__init__()
        self.student = student

    def forward(self, noise: Tensor, *cond: Tensor) -> Tensor:
        named, codec = dict(zip(inputs(self.student), cond, strict=True)), self.student.codec
        x = self.student(noise[:, 0], named, lambda i: noise[:, i])
        return codec.decode(x, named) if codec.in_graph else x


def arguments(student: FewStepStudent, num: int, larger: int = 0, seed: int = 0) -> tuple[Tensor, ...]:
    """Arguments of `Flat` for `num` samples whose free sizes are `larger` than the examples'."""
    cond = student.checked_condition(num, None)
    for name, axes in student.codec.free.items():
        for axis in axes:
            side = cond[name].shape[axis]
            cond[name] = cond[name].index_select(axis, torch.arange(side + larger).clamp_max(side - 1))
    shape = student.codec.shape(num, student.event_shape, cond)
    noise = torch.randn((num, student.draws, *shape[1:]), generator=torch.Generator().manual_seed(seed))
    return noise, *(cond[name] for name in inputs(student))


def free_sizes(student: FewStepStudent, noise: Tensor, *cond: Tensor) -> tuple:
    """What `torch.export` takes as `dynamic_shapes` of these arguments of `Flat`.

    The number of samples is free, and so are the sizes that the codec says; those of the noise are
    multiples of them.
    """
    batch = torch.export.Dim("batch", min=1, max=MOST)
    sides, shapes = {}, []
    for name, value in zip(inputs(student), cond, strict=True):
        own = {axis: torch.export.Dim(f"{name}_{axis}", min=LEAST) for axis in student.codec.free.get(name, ())}
        sides |= {axis + 1: noise.shape[axis + 1] // value.shape[axis] * side for axis, side in own.items()}
        shapes.append({0: batch, **own})
    return {0: batch, **sides}, *([tuple(shapes)] if shapes else [])


def to_onnx(student: FewStepStudent, path: Path) -> float:
    """Write an ONNX graph `(noise, *conditions) -> samples` and compare it.

    The number of samples and the sizes that follow from a condition are free.
    """
    if any(isinstance(module, Routed) for module in student.modules()):
        raise UsageError("a student whose samples go to several networks has no ONNX graph: use --format safetensors")
    optional("onnxscript", "onnx", "ONNX graphs are made with")  # torch's exporter needs it
    onnxruntime = optional("onnxruntime", "onnx", "ONNX graphs are compared with")
    module, names, shown = Flat(student.merged()).eval(), ["noise", *inputs(student)], arguments(student, 3)

    def write(temporary: Path) -> None:
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                shown,
                dynamo=True,
                dynamic_shapes=free_sizes(student, *shown),
                input_names=names,
                output_names=["samples"],
                verbose=False,
            )
        program.save(str(temporary))

    write_atomic(path, write)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    others = arguments(student, 5, larger=1, seed=1)  # another batch size, other sides
    feed = {name: value.numpy() for name, value in zip(names, others, strict=True)}
    with torch.no_grad():
        expected = Flat(student)(*others)
        return _difference(path, expected, torch.from_numpy(session.run(None, feed)[0]), ROUNDING)


def _difference(path: Path, expected: Tensor, got: Tensor, tolerance: float) -> float:
    error = float((expected - got).abs().max())
    if not error <= tolerance:
        path.unlink()
        raise Failure(
            f"the exported student differs from the original by {error:.1e} (allowed {tolerance:.0e}), so it was not kept"
        )
    return error
