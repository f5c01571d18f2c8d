"""Names inside nnU-Net that training relies on: the trainer, its batches, losses and networks."""

from __future__ import annotations

from nnssl.host.entries import HostName, attributes, callables, texts

LOOKUPS = "nnssl.host"
FRAME = "nnssl_trainers.frame"
TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer"
LOADER = "nnunetv2.training.dataloading.data_loader.nnUNetDataLoader"
LOGGER = "nnunetv2.training.logging.nnunet_logger"
TRANSFORMS = "batchgeneratorsv2.transforms"
DATASET_ARGUMENTS = "foreground_labels regions ignore_label"

TRAINING: tuple[HostName, ...] = (
    # ------------------------------------------------------------------ trainer
    *callables(
        TRAINER,
        f"{FRAME}.checkpointing",
        "the constructor of every trainer, which nnU-Net's commands call with these arguments",
        __init__="plans configuration fold dataset_json device",
    ),
    *callables(
        TRAINER,
        f"{FRAME}.trainer",
        "building network, optimiser and loss as nnU-Net's `initialize` does",
        initialize="",
        configure_optimizers="",
        build_network_architecture="plans_manager configuration_manager num_input_channels num_output_channels "
        "enable_deep_supervision",
        _set_batch_size_and_oversample="",
        _do_i_compile="",
        _build_loss="",
    ),
    *callables(
        TRAINER,
        f"{FRAME}.data_streams",
        "transforms and cases of the training batches",
        do_split="",
        get_dataloaders="",
        get_tr_and_val_datasets="",
        configure_rotation_dummyDA_mirroring_and_inital_patch_size="",
        _get_deep_supervision_scales="",
        get_training_transforms="patch_size rotation_for_DA deep_supervision_scales mirror_axes do_dummy_2d_data_aug "
        f"use_mask_for_norm is_cascaded {DATASET_ARGUMENTS}",
        get_validation_transforms=f"deep_supervision_scales is_cascaded {DATASET_ARGUMENTS}",
    ),
    *callables(
        TRAINER,
        f"{FRAME}.run_loop",
        "the loop of a run, which nnU-Net's commands start",
        run_training="",
        perform_actual_validation="save_probabilities",
        on_train_start="",
        on_train_end="",
        on_epoch_start="",
        on_validation_epoch_start="",
        on_validation_epoch_end="val_outputs",
        validation_step="batch",
        set_deep_supervision_enabled="enabled",
        _save_debug_information="",
    ),
    *callables(TRAINER, f"{FRAME}.step", "one optimiser step", train_step="batch"),
    *callables(
        TRAINER,
        f"{FRAME}.checkpointing",
        "checkpoints and the log file",
        save_checkpoint="filename",
        load_checkpoint="filename_or_checkpoint",
        print_to_log_file="args also_print_to_console add_timestamp",
    ),
    *attributes(
        TRAINER,
        f"{FRAME}.checkpointing",
        "the state of a run, its folders, and what a checkpoint holds",
        "my_init_kwargs _best_ema current_epoch num_epochs was_initialized disable_checkpointing network optimizer "
        "grad_scaler logger inference_allowed_mirroring_axes output_folder output_folder_base is_cascaded is_ddp "
        "local_rank device",
    ),
    *attributes(
        TRAINER,
        f"{FRAME}.trainer",
        "what `initialize` builds, and from what",
        "plans_manager configuration_manager dataset_json label_manager num_input_channels dataset_class loss "
        "lr_scheduler enable_deep_supervision preprocessed_dataset_folder",
    ),
    *attributes(
        TRAINER,
        f"{FRAME}.data_streams",
        "what batches are made from",
        "batch_size fold configuration_name num_val_iterations_per_epoch oversample_foreground_percent "
        "preprocessed_dataset_folder_base",
    ),
    *attributes(TRAINER, f"{FRAME}.run_loop", "the streams of batches", "dataloader_train dataloader_val"),
    *texts(
        f"{TRAINER}.save_checkpoint",
        f"{FRAME}.checkpointing",
        "the keys of a checkpoint",
        "network_weights optimizer_state grad_scaler_state logging _best_ema current_epoch init_args trainer_name "
        "inference_allowed_mirroring_axes",
    ),
    *callables(
        f"{LOGGER}.MetaLogger",
        f"{FRAME}.run_loop",
        "nnU-Net's curves, the pseudo Dice among them",
        log="key value step",
        get_value="key step",
    ),
    *callables(
        f"{LOGGER}.MetaLogger",
        f"{FRAME}.checkpointing",
        "nnU-Net's curves of a continued run",
        get_checkpoint="",
        load_checkpoint="checkpoint",
    ),
    *texts(
        f"{LOGGER}.LocalLogger.__init__",
        f"{FRAME}.run_loop",
        "the curves that nnU-Net's logger knows",
        "lrs train_losses val_losses epoch_end_timestamps dice_per_class_or_region mean_fg_dice ema_fg_dice",
    ),
    *attributes(
        "nnunetv2.training.loss.deep_supervision.DeepSupervisionWrapper",
        f"{FRAME}.step",
        "the loss of one output",
        "loss",
    ),
    *attributes(
        "nnunetv2.training.loss.deep_supervision.DeepSupervisionWrapper",
        "nnssl_trainers.methods.dsmt nnssl_trainers.methods.plgdf",
        "the weights of all outputs",
        "weight_factors",
    ),
    *attributes(
        "nnunetv2.training.loss.compound_losses.DC_and_CE_loss",
        "nnssl_trainers.methods.dptm",
        "cross-entropy without Dice in the supervised loss",
        "weight_dice",
    ),
    *attributes(
        "dynamic_network_architectures.building_blocks.unet_decoder.UNetDecoder",
        f"{FRAME}.run_loop",
        "switching deep supervision on and off",
        "deep_supervision",
    ),
    *attributes(
        "dynamic_network_architectures.building_blocks.unet_decoder.UNetDecoder",
        "nnssl_trainers.parts.decoder_features",
        "the features before the last layer",
        "seg_layers",
    ),
    *attributes(
        "dynamic_network_architectures.building_blocks.plain_conv_encoder.PlainConvEncoder",
        "nnssl_trainers.parts.encoder_features",
        "the number of features of the deepest stage",
        "output_channels",
    ),
    # ------------------------------------------------------------------ batches
    *callables(
        LOADER,
        f"{FRAME}.data_streams",
        "the batch maker of each stream",
        __init__="data batch_size patch_size final_patch_size label_manager oversample_foreground_percent "
        "sampling_probabilities pad_sides probabilistic_oversampling transforms",
    ),
    *callables(
        LOADER,
        "nnssl.data.boxes",
        "drawing the patches of a batch, and the place of each",
        get_bbox="data_shape force_fg class_locations overwrite_class verbose",
        generate_train_batch="",
    ),
    *attributes(
        LOADER,
        "nnssl.data.boxes",
        "where a patch lies in its scan",
        "patch_size final_patch_size patch_size_was_2d",
    ),
    *attributes(LOADER, f"{FRAME}.data_streams", "unlabelled patches have no ignore label", "has_ignore"),
    *attributes(LOADER, LOOKUPS, "finding the case that cannot be read", "_data"),
    *callables(LOADER, LOOKUPS, "naming the cases of a batch that cannot be made", get_indices=""),
    *texts(
        f"{LOADER}.generate_train_batch",
        "nnssl.planning.preprocessing",
        "unlabelled cases have empty class locations",
        "class_locations",
    ),
    *texts(f"{LOADER}.generate_train_batch", "nnssl.data.streams", "the content of a batch", "data target"),
    *callables(
        "nnunetv2.training.dataloading.nnunet_dataset.nnUNetDatasetBlosc2",
        "nnssl.data.streams nnssl_trainers.frame.validation",
        "reading preprocessed cases",
        load_case="identifier",
    ),
    *attributes(
        "nnunetv2.training.dataloading.nnunet_dataset.nnUNetDatasetBlosc2",
        "nnssl.data.streams",
        "naming the case that cannot be read",
        "identifiers source_folder",
    ),
    *callables(f"{TRANSFORMS}.base.basic_transform.BasicTransform", "nnssl.data.views", "views", apply="data_dict"),
    *callables(
        f"{TRANSFORMS}.spatial.mirroring.MirrorTransform", "nnssl.data.boxes", "axes", get_parameters="data_dict"
    ),
    *attributes(f"{TRANSFORMS}.spatial.mirroring.MirrorTransform", "nnssl.data.boxes", "axes", "allowed_axes"),
    *attributes(
        f"{TRANSFORMS}.utils.random.RandomTransform",
        "nnssl.data.views",
        "the probability of each intensity augmentation",
        "transform apply_probability",
    ),
    *attributes(f"{TRANSFORMS}.utils.compose.ComposeTransforms", "nnssl.data.views", "views", "transforms"),
    *attributes(
        f"{TRANSFORMS}.noise.gaussian_blur.GaussianBlurTransform",
        "nnssl.data.views",
        "a blur that does not time its algorithms, so that seeded runs repeat",
        "benchmark",
    ),
    *attributes(
        f"{TRANSFORMS}.spatial.spatial.SpatialTransform",
        f"{FRAME}.augmentation",
        "the papers' rotations, without scaling",
        "rotation p_rotation p_scaling",
    ),
    *callables(
        f"{TRANSFORMS}.spatial.rot90",
        f"{FRAME}.augmentation",
        "the papers' turns by 90°",
        Rot90Transform="num_axis_combinations num_rot_per_combination allowed_axes",
    ),
)
