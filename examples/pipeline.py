"""Distil a text-to-image pipeline of the package diffusers into a one-step student (extra `hf`).

python examples/pipeline.py [--pipeline DIR] [--steps 20] [--out runs/example-pipeline]

Without --pipeline it makes a tiny Stable Diffusion with random weights, whose pictures are noise:
what is shown is the way, which is the same for a released one.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from distillkit import load_student
from distillkit.callbacks.progress import Progress
from distillkit.cli.lightning import quiet
from distillkit.evaluation.pictures import save_picture
from distillkit.methods.base import Adam
from distillkit.methods.dmd import DMD
from distillkit.pipelines.files import import_diffusers
from distillkit.pipelines.teacher import ask
from distillkit.students.makers import Lora
from domains.image import media
from domains.image.pipelines import ImagePipeline
from domains.image.prompts import Prompts

PROMPTS = ["a cat", "a cat on the moon", "a dog", "a dog on the moon"]
WORDS = ["[PAD]", "[UNK]", "a", "cat", "dog", "on", "the", "moon"]


def main(steps: int = 20, out: str = "runs/example-pipeline", pipeline: str | None = None) -> None:
    quiet()  # fewer messages of Lightning
    seed_everything(0, verbose=False)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = pipeline or tiny_pipeline(folder / "pipeline")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))

    teacher = ImagePipeline(path, str(prompts))
    data = Prompts(str(prompts), path, batch_size=4)
    adapters = Lora(rank=4)  # student and fake score share the teacher's network, in memory once
    method = DMD(
        teacher,
        student_maker=adapters,
        fake_score_maker=adapters,
        kappa=3.0,  # the pipeline's guidance_scale
        student=Adam(lr=1e-4),
        fake_score=Adam(lr=1e-4, updates=1),
    )
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[Progress()],
    )
    trainer.fit(method, data)
    method.eval().export(folder / "student", domain="image")

    student = load_student(folder / "student", pipeline=path)
    ask(student, ["a dog on the moon", "the moon"], path)
    samples = student.sample(4, seed=1)
    save_picture(folder / "samples.png", media.picture(samples))
    print(f"{len(samples)} images of {list(samples.shape[1:])} in {student.num_steps} step: {folder / 'samples.png'}")


def tiny_pipeline(folder: Path) -> str:
    """A Stable Diffusion of random weights, 64 pixels, saved as the released ones are."""
    diffusers = import_diffusers()
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[PAD]", model_max_length=8
    )
    text = transformers.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=len(WORDS),
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", help="the directory of a text-to-image pipeline")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", default="runs/example-pipeline")
    options = parser.parse_args()
    main(options.steps, options.out, options.pipeline)
