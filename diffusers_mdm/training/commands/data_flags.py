# SPDX-License-Identifier: Apache-2.0
"""The flags for training data, and for training on a subject (DreamBooth); see `flag_table`."""

from ..recipe.data import DataRecipe
from ..recipe.pretrained import PriorRecipe
from .flag_values import Flag, choices_of, count, natural, number, shares, sizes, switch

DATA = (
    Flag("dataset_name", "data.path", "data set on the Hub, or a folder with one"),
    Flag("dataset_config_name", "data.config_name", "configuration of the data set"),
    Flag(
        "train_data_dir",
        "data.path",
        "folder of images with text files beside them or a metadata.jsonl, or of parquet files",
    ),
    Flag(
        "shards",
        "data.shards",
        "WebDataset tar files; {000..123} in a name stands for a range of numbers",
        is_list=True,
    ),
    Flag("image_column", "data.image_column", "column with the images (default image)"),
    Flag("video_column", "data.video_column", "column with the clips, for video models"),
    Flag(
        "frame_stride",
        "data.frame_stride",
        "take every N-th frame (default: frames spread over the whole clip)",
        count,
    ),
    Flag("caption_column", "data.caption_column", "column with the captions (default text)"),
    Flag(
        "other_caption_columns",
        "data.other_caption_columns",
        "further columns with captions, each with the fraction of the training samples that take their caption from "
        "it instead, e.g. label=0.15",
        shares,
    ),
    Flag("label_column", "data.label_column", "column with the classes, for class-conditional models"),
    Flag("validation_split", "data.validation_split", "split that is held out for the validation loss"),
    Flag(
        "validation_shards",
        "data.validation_shards",
        "tar files that are held out for the validation loss, together with --shards",
        is_list=True,
    ),
    Flag("max_train_samples", "data.max_train_samples", "use only N images", count),
    switch(
        "use_aspect_ratio_buckets",
        "data.use_aspect_ratio_buckets",
        "crop images to several aspect ratios instead of squares; each batch has one of them (data sets and folders)",
    ),
    Flag(
        "aspect_ratio_buckets",
        "data.aspect_ratio_buckets",
        "their sizes as height,width in pixels of the outermost trained level, e.g. '48,80;64,64;80,48' (default: "
        "sizes with about the area of the square, up to 2 to 1)",
        sizes,
    ),
    switch("center_crop", "data.center_crop", "crop squares from the centre instead of at random"),
    switch("random_flip", "data.random_flip", "flip images horizontally with probability 1/2"),
    Flag(
        "image_interpolation_mode",
        "data.image_interpolation_mode",
        "how images are resized (default area, as between the levels)",
        choices=choices_of(DataRecipe, "image_interpolation_mode"),
    ),
    Flag("min_image_side", "data.min_image_side", "skip images with a side of fewer than N pixels", natural),
    Flag(
        "max_skipped_images",
        "data.max_skipped_images",
        "end the run when one process has skipped more than N unreadable or too small images",
        natural,
    ),
    Flag(
        "embeddings_dir",
        "data.embeddings_dir",
        "folder of precomputed text embeddings, used instead of a text encoder in memory",
    ),
    Flag(
        "dataloader_num_workers", "options.dataloader_num_workers", "processes that read images (default 0)", natural
    ),
    Flag("cache_dir", "options.cache_dir", "folder for downloaded models and data"),
)

SUBJECT = (
    Flag("instance_data_dir", "data.path", "folder with a few images of the subject"),
    Flag("instance_prompt", "data.caption", "caption of these images, with a rare word for the subject"),
    switch("with_prior_preservation", None, "also train on an equal number of images of the subject's class"),
    Flag("class_data_dir", "prior_preservation.class_data_dir", "folder with images of the class"),
    Flag(
        "class_prompt",
        "prior_preservation.class_prompt",
        "caption of the class images; missing images are generated from it",
    ),
    Flag(
        "num_class_images",
        "prior_preservation.num_class_images",
        "required number of class images (default 100)",
        count,
    ),
    Flag(
        "prior_loss_weight", "prior_preservation.weight", "weight of the loss of the class images (default 1)", number
    ),
    Flag(
        "sample_batch_size",
        "prior_preservation.sample_batch_size",
        "class images generated per batch (default 4)",
        count,
    ),
    Flag(
        "prior_generation_precision",
        "prior_preservation.precision",
        "precision for generating class images (default: that of the run); no means fp32",
        choices=("no", *choices_of(PriorRecipe, "precision")),
    ),
    switch(
        "pre_compute_text_embeddings",
        "options.pre_compute_text_embeddings",
        "encode all captions first, and train without the text encoder in memory",
    ),
)
