"""Named experiments: functions that return a complete `ExperimentConfig`. A variant edits a base with
`dataclasses.replace`.

    groupvit pretrain gcc_yfcc_30e --data.sources s3://bucket/cc3m s3://bucket/cc12m s3://bucket/yfcc14m
    --training.num-workers 16

Data sizes are in pairs.
"""

import dataclasses

from groupvit.config import (
    ImageEncoderConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SegmentationConfig,
    TextEncoderConfig,
)
from pipelines.experiments.config import DataConfig, ExperimentConfig, IngestConfig, TrainingConfig

CC3M, CC12M, YFCC14M, REDCAPS12M = 2_891_445, 11_156_203, 14_615_499, 11_866_987
"""Number of pairs in the authors' copies of the four data sets. Some links are dead, so a download today has fewer
pairs; the number of steps stays the same."""


def debug() -> ExperimentConfig:
    """Trains in seconds on any machine: a tiny two-stage model on `groupvit demo-data shapes --out data/shapes`."""
    return ExperimentConfig(
        name="debug",
        model=ModelConfig(
            image=ImageEncoderConfig(
                image_size=32,
                patch_size=8,
                width=32,
                depths=(1, 1, 1),
                num_heads=(2, 2, 2),
                num_group_tokens=(8, 4, 0),
                num_output_groups=(8, 4),
            ),
            text=TextEncoderConfig(context_length=32, width=32, depth=1, num_heads=2),
            embedding_dim=32,
            projector_width=64,
        ),
        loss=LossConfig(num_prompts=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, reference_batch_size=32, warmup_steps=2),
        data=DataConfig(sources=("data/shapes/train",)),
        ingest=IngestConfig(slice_size=16, window_size=64, augmentation="crop_flip"),
        training=TrainingConfig(
            num_steps=20, global_batch_size=32, precision="float32", checkpoint_every_n_steps=10, log_every_n_steps=1
        ),
        segmentation=SegmentationConfig(short_side=64, max_long_side=256, window=64, stride=32, antialias=True),
    )


def demo() -> ExperimentConfig:
    """Trains in minutes on 2 cores: a small one-stage model on `groupvit demo-data stamps --out data/stamps`.

    `groupvit demo` runs it. It differs from the paper so that it learns grouping from tens of thousands of small images
    instead of millions. All options that differ are written out; docs/ablations.md shows the effect of each.
    """
    num_steps = 2200
    return ExperimentConfig(
        name="demo",
        model=ModelConfig(
            image=ImageEncoderConfig(
                image_size=64,
                patch_size=8,
                stem="convolutional",
                width=128,
                depths=(4, 0),
                num_heads=(2, 2),
                num_group_tokens=(8, 0),
                num_output_groups=(8,),
                assignment="soft",
                group_residual=False,
                initialisation="fan_in",
                stochastic_depth=0.0,
            ),
            text=TextEncoderConfig(context_length=32, width=64, depth=2, num_heads=4),
            embedding_dim=128,
            projector_width=512,
        ),
        loss=LossConfig(num_prompts=5, multi_label_match="mixture"),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_learning_rate=1e-5,
            min_learning_rate=1e-5,
            reference_batch_size=64,
            warmup_steps=num_steps // 20,
            betas=(0.9, 0.98),
        ),
        data=DataConfig(sources=("data/stamps/train",)),
        ingest=IngestConfig(
            slice_size=32,
            window_size=1024,
            augmentation="crop_flip",
            crop_scale=(0.5, 1.0),
            color_jitter=0.2,
            prompt_templates="plain",
            prompt_padding="nouns",
        ),
        training=TrainingConfig(
            num_steps=num_steps,
            global_batch_size=64,
            num_workers=2,
            checkpoint_every_n_steps=500,
            log_every_n_steps=50,
        ),
        segmentation=SegmentationConfig(
            short_side=64,
            window=None,
            max_long_side=256,
            masks="soft",
            logit_scale="multi_label",
            top_classes=None,
            scales=(1.0, 1.5),
            flip=True,
            antialias=True,
            background_threshold=0.25,  # near what calibration finds; `evaluate` can choose it on calibration scenes
        ),
    )


FLICKR8K_BACKGROUND = (
    *("grass", "snow", "water", "field", "beach", "street", "sand", "wall", "mountain", "rock", "dirt", "building"),
    *("ocean", "hill", "tree", "road", "sidewalk", "park", "pool", "fence"),
)
"""Nouns of places and surroundings that Flickr8k's captions name most often, none of them a class of PASCAL VOC."""


def flickr8k() -> ExperimentConfig:
    """Trains on photographs in under an hour on 2 cores: a model like `demo`'s on Flickr8k's 8,091 photographs.

    docs/real.md says how to get them, and what the model can do.
    """
    base = demo()
    num_steps = 1400
    return dataclasses.replace(
        base,
        name="flickr8k",
        model=dataclasses.replace(
            base.model, text=TextEncoderConfig(context_length=32, width=128, depth=3, num_heads=4)
        ),
        loss=LossConfig(num_prompts=3, multi_label_match="mixture"),
        optimizer=dataclasses.replace(base.optimizer, reference_batch_size=128, warmup_steps=num_steps // 20),
        data=DataConfig(sources=("data/flickr8k/train",)),
        ingest=dataclasses.replace(base.ingest, slice_size=64, crop_scale=(0.3, 1.0), color_jitter=0.4),
        training=dataclasses.replace(base.training, num_steps=num_steps, global_batch_size=128, ema_decay=0.99),
        segmentation=dataclasses.replace(
            base.segmentation,
            background_prompts=FLICKR8K_BACKGROUND,
            background_threshold=0.0,  # the prompts alone are the background: a threshold would want masks to choose it
        ),
    )


def gcc_yfcc_30e() -> ExperimentConfig:
    """The paper's best run on Pascal VOC (52.3 mIoU): CC3M + CC12M + YFCC14M, 30 epochs, 3 noun prompts per image."""
    return _paper("gcc_yfcc_30e", num_pairs=CC3M + CC12M + YFCC14M, num_epochs=30, num_prompts=3)


def gcc_redcaps_30e() -> ExperimentConfig:
    """The authors' run with RedCaps12M instead of YFCC14M (50.8 / 23.7 / 27.5 mIoU): no multi-label loss."""
    return _paper("gcc_redcaps_30e", num_pairs=CC3M + CC12M + REDCAPS12M, num_epochs=30, num_prompts=0)


def cc3m_coco() -> ExperimentConfig:
    """A small-data baseline: CC3M + COCO captions, 3.4 M pairs, otherwise the paper's recipe. The ZeroSeg paper reports
    28.1 / 14.8 / 12.9 mIoU (VOC, Context, COCO-Object) for GroupViT trained on them."""
    return _paper("cc3m_coco", num_pairs=3_400_000, num_epochs=30, num_prompts=3)


def _paper(name: str, *, num_pairs: int, num_epochs: int, num_prompts: int) -> ExperimentConfig:
    """The released recipe with a global batch of 4,096 (256 on each of 16 GPUs).

    An epoch is floor(pairs / batch) steps: 6,997 for GCC + YFCC, 6,326 for GCC + RedCaps. Warm-up takes 2 epochs, as
    released (the paper's text says 5).
    """
    base = ExperimentConfig(name=name)
    steps_per_epoch = num_pairs // base.training.global_batch_size
    return dataclasses.replace(
        base,
        loss=LossConfig(num_prompts=num_prompts),
        optimizer=OptimizerConfig(
            learning_rate=1.6e-3,
            warmup_learning_rate=4e-6,
            min_learning_rate=4e-5,
            reference_batch_size=4096,
            warmup_steps=2 * steps_per_epoch,
            weight_decay=0.05,
            clip_grad_norm=5.0,
        ),
        ingest=IngestConfig(slice_size=256, augmentation="deit", crop_scale=(0.08, 1.0)),
        training=TrainingConfig(
            num_steps=num_epochs * steps_per_epoch,
            global_batch_size=4096,
            num_workers=16,
            cpus_per_worker=4,
            checkpoint_every_n_steps=1000,
        ),
    )


EXPERIMENTS = {
    function.__name__: function for function in (debug, demo, flickr8k, gcc_yfcc_30e, gcc_redcaps_30e, cc3m_coco)
}
