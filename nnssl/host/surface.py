"""Names inside nnU-Net and its libraries that nnssl relies on: private ones, hooks, and what subclasses take over."""

from __future__ import annotations

from nnssl.host.entries import HostName, attributes, callables, texts, values
from nnssl.host.training import TRAINING

LOOKUPS = "nnssl.host"
FRAME = "nnssl_trainers.frame"
PREDICTOR = "nnunetv2.inference.predict_from_raw_data.nnUNetPredictor"
PLANNER = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner.ExperimentPlanner"
EXTRACTOR = "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor.DatasetFingerprintExtractor"
PREPROCESSOR = "nnunetv2.preprocessing.preprocessors.default_preprocessor.DefaultPreprocessor"
HANDLER = "nnunetv2.utilities.plans_handling.plans_handler"
LABELS = "nnunetv2.utilities.label_handling.label_handling"
READERS = "nnunetv2.imageio.reader_writer_registry"

SURFACE: tuple[HostName, ...] = (
    *TRAINING,
    # ------------------------------------------------------------------ prediction
    *callables(
        PREDICTOR,
        "nnssl.inference.predictor",
        "sliding window prediction with a model that stays loaded",
        __init__="tile_step_size use_gaussian use_mirroring perform_everything_on_device device verbose "
        "verbose_preprocessing allow_tqdm",
        initialize_from_trained_model_folder="model_training_output_dir use_folds checkpoint_name",
        manual_initialization="network plans_manager configuration_manager parameters dataset_json trainer_name "
        "inference_allowed_mirroring_axes",
        predict_logits_from_preprocessed_data="data",
        _internal_get_sliding_window_slicers="image_size",
        _internal_predict_sliding_window_return_logits="data slicers do_on_device",
    ),
    *attributes(
        PREDICTOR,
        "nnssl.inference.predictor",
        "batches of tiles and mirrored copies, progress, and the plans of the model",
        "network plans_manager configuration_manager label_manager dataset_json list_of_parameters "
        "allowed_mirroring_axes use_mirroring device",
    ),
    *attributes(PREDICTOR, "nnssl.inference.records", "the record of a prediction", "tile_step_size"),
    *texts(
        f"{PREDICTOR}.initialize_from_trained_model_folder",
        "nnssl.inference.checkpoint",
        "the keys that a checkpoint of stock nnU-Net has",
        "network_weights trainer_name init_args configuration inference_allowed_mirroring_axes",
    ),
    *callables(
        "nnunetv2.inference.export_prediction",
        LOOKUPS,
        "the mask on the grid of the original scan, for plans with another resampling",
        convert_predicted_logits_to_segmentation_with_correct_shape="predicted_logits plans_manager "
        "configuration_manager label_manager properties_dict return_probabilities num_threads_torch",
    ),
    *callables(
        "nnunetv2.preprocessing.resampling.default_resampling",
        LOOKUPS,
        "whether logits are resampled apart along one axis",
        determine_do_sep_z_and_axis="force_separate_z current_spacing new_spacing separate_z_anisotropy_threshold",
    ),
    *callables(
        "nnunetv2.inference.sliding_window_prediction",
        "nnssl.inference.predictor",
        "weights of overlapping patches; nnssl.host empties their cache after validation",
        compute_gaussian="tile_size sigma_scale value_scaling_factor dtype device",
    ),
    # ------------------------------------------------------------------ planning and preprocessing
    *callables(
        PLANNER,
        "nnssl.planning.planner",
        "plans that are sized for what a trainer holds in memory",
        __init__="dataset_name_or_id gpu_memory_target_in_gb preprocessor_name plans_name overwrite_target_spacing "
        "suppress_transpose",
        static_estimate_VRAM_usage="patch_size input_channels output_channels arch_class_name arch_kwargs "
        "arch_kwargs_req_import",
        get_plans_for_configuration="spacing median_shape data_identifier approximate_n_voxels_dataset _cache",
        generate_data_identifier="configuration_name",
        save_plans="plans",
        determine_reader_writer="",
    ),
    *attributes(
        PLANNER,
        "nnssl.planning.planner",
        "the memory target, and the size of the small plan",
        "UNet_vram_target_GB UNet_base_num_features UNet_max_features_2d UNet_max_features_3d dataset_json "
        "UNet_featuremap_min_edge_length lowres_creation_threshold plans_identifier "
        "dataset_fingerprint",
    ),
    *callables(
        PLANNER,
        "nnssl.planning.planner",
        "the axis of one-slice scans comes first",
        determine_transpose="",
        determine_fullres_target_spacing="",
    ),
    *callables(
        PLANNER,
        "nnssl.planning.planner",
        "one normalisation for all modalities",
        determine_normalization_scheme_and_whether_mask_is_used_for_norm="",
    ),
    *callables(
        PREPROCESSOR,
        "nnssl.planning.preprocessing nnssl.inference.predictor",
        "preprocessing with and without a label",
        run_case="image_files seg_file plans_manager configuration_manager dataset_json",
    ),
    *callables(
        PREPROCESSOR,
        "nnssl.planning.preprocessing",
        "preprocessed cases on disk",
        run_case_save="output_filename_truncated image_files seg_file plans_manager configuration_manager dataset_json",
    ),
    *callables(
        PREPROCESSOR,
        "nnssl.inference.predictor",
        "preprocessing of an image in memory",
        run_case_npy="data seg properties plans_manager configuration_manager dataset_json",
    ),
    *callables(
        PREPROCESSOR,
        "nnssl.host.preprocessing",
        "the check of the intensities after normalisation",
        _normalize="data seg configuration_manager foreground_intensity_properties_per_channel",
    ),
    *callables(
        PREPROCESSOR,
        LOOKUPS,
        "places of pseudo-labelled foreground, as preprocessing notes them for labels",
        _sample_foreground_locations="seg classes_or_regions",
    ),
    *callables(
        f"{LABELS}.LabelManager",
        "nnssl.labelling.prediction",
        "labels and probabilities of a pseudo-labelled scan",
        convert_probabilities_to_segmentation="predicted_probabilities",
    ),
    *callables(
        f"{LABELS}.LabelManager",
        f"{FRAME}.stored_labels",
        "probabilities of a pseudo-labelled scan",
        apply_inference_nonlin="logits",
    ),
    *texts(
        "nnunetv2.imageio.tif_reader_writer.Tiff3DIO.write_seg",
        LOOKUPS,
        "the file with the voxel size beside a TIFF mask",
        "spacing .json",
    ),
    *callables(
        EXTRACTOR,
        "nnssl.planning.fingerprint",
        "the fingerprint of one labelled case",
        __init__="dataset_name_or_id num_processes",
        analyze_case="image_files segmentation_file reader_writer_class num_samples",
    ),
    *attributes(
        EXTRACTOR,
        "nnssl.planning.fingerprint",
        "voxels that the intensity statistics draw",
        "num_foreground_voxels_for_intensitystats",
    ),
    *callables(
        "nnunetv2.experiment_planning.plan_and_preprocess_api",
        LOOKUPS,
        "planning with the planner classes of nnssl",
        plan_experiment_dataset="dataset_id experiment_planner_class gpu_memory_target_in_gb preprocess_class_name "
        "overwrite_target_spacing overwrite_plans_name",
    ),
    *values(
        "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner",
        LOOKUPS,
        "the planner's median size has at least one voxel on every axis",
        "compute_new_shape",
    ),
    *callables(
        "nnunetv2.experiment_planning.experiment_planners.network_topology",
        LOOKUPS,
        "the patch of the small plan",
        get_pool_and_conv_props="spacing patch_size min_feature_map_size max_numpool",
    ),
    *callables(
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "nnssl.planning.planner",
        "the estimate of a network's memory without allocating the network",
        compute_conv_feature_map_size="input_size",
    ),
    *callables(
        "nnunetv2.preprocessing.resampling.no_resampling",
        "nnssl.inference.network",
        "prediction skips the resampling of label maps",
        no_resampling_hack=None,
    ),
    # ------------------------------------------------------------------ look-ups, plans, environment
    *callables(
        "nnunetv2.utilities.find_class_by_name",
        LOOKUPS,
        "classes that users name",
        recursive_find_python_class="folder class_name current_module",
    ),
    *callables(
        "nnunetv2.utilities.find_objects",
        LOOKUPS,
        "the trainer of a stock checkpoint",
        recursive_find_trainer_class_by_name="trainer_name",
    ),
    *callables(
        "nnunetv2.utilities.get_network_from_plans",
        LOOKUPS,
        "networks as the plans describe them",
        get_network_from_plans="arch_class_name arch_kwargs arch_kwargs_req_import input_channels output_channels "
        "allow_init deep_supervision",
    ),
    *callables(
        READERS,
        LOOKUPS,
        "the reader of a data set",
        determine_reader_writer_from_dataset_json="dataset_json_content example_file allow_nonmatching_filename "
        "verbose",
        recursive_find_reader_writer_by_name="rw_class_name",
    ),
    *values(READERS, LOOKUPS, "the readers in the order in which nnU-Net tries them", "LIST_OF_IO_CLASSES"),
    *callables(
        "nnunetv2.imageio.base_reader_writer.BaseReaderWriter",
        "nnssl.inference.export",
        "writing a mask and reading it back",
        write_seg="seg output_fname properties",
        read_seg="seg_fname",
    ),
    *callables("nnunetv2.utilities.default_n_proc_DA", LOOKUPS, "loading processes", get_allowed_n_proc_DA=""),
    *callables("nnunetv2.run.run_training", LOOKUPS, "a port for distributed training", find_free_network_port=""),
    *callables(
        "nnunetv2.training.dataloading.nnunet_dataset",
        LOOKUPS,
        "the class that reads the cases of a folder",
        infer_dataset_class="folder",
    ),
    *callables(
        LABELS,
        LOOKUPS,
        "the channels of a network's input",
        determine_num_input_channels="plans_manager configuration_or_config_manager dataset_json",
    ),
    *callables(
        HANDLER,
        LOOKUPS,
        "nnU-Net's view of the plans",
        PlansManager="plans_file_or_dict",
    ),
    *callables(
        HANDLER,
        "nnssl.host.preprocessing",
        "a configuration whose resampling keeps one slice",
        ConfigurationManager="configuration_dict",
    ),
    *callables(
        f"{HANDLER}.PlansManager",
        "nnssl.inference.network",
        "configuration and labels of a model",
        get_configuration="configuration_name",
        get_label_manager="dataset_json",
    ),
    *values(
        f"{HANDLER}.PlansManager",
        "nnssl.inference.network",
        "a configuration that the plans do not have is an error",
        "available_configurations",
    ),
    *values(
        f"{HANDLER}.ConfigurationManager",
        "nnssl.planning.preprocessing",
        "what preprocessing looks up by name",
        "preprocessor_class data_identifier",
    ),
    *values(
        f"{HANDLER}.ConfigurationManager",
        "nnssl.planning.preprocessing nnssl.host.preprocessing",
        "what preprocessing looks up by name, and resampling that keeps one slice of a thin scan",
        "resampling_fn_data resampling_fn_seg",
    ),
    *values(
        f"{HANDLER}.ConfigurationManager",
        "nnssl.inference.network",
        "cascades, and preprocessing without label maps",
        "previous_stage_name preprocessor_name",
    ),
    *values(
        f"{LABELS}.LabelManager",
        f"{FRAME}.data_streams",
        "labels, regions and the ignore label",
        "has_regions foreground_labels foreground_regions ignore_label",
    ),
    *values(f"{LABELS}.LabelManager", f"{FRAME}.trainer", "output channels", "num_segmentation_heads"),
    *values(
        "nnunetv2.paths",
        "nnssl.names",
        "nnU-Net reads these variables when a path is used, not at import",
        "nnUNet_raw nnUNet_preprocessed nnUNet_results",
    ),
    *texts("nnunetv2.configuration", "nnssl.system.resources", "number of processes", "nnUNet_def_n_proc"),
    *texts(
        "nnunetv2.utilities.default_n_proc_DA.get_allowed_n_proc_DA",
        "nnssl.data.streams",
        "number of loading processes",
        "nnUNet_n_proc_DA",
    ),
    *values("nnunetv2.paths", "nnssl.cli.methods", "the folder of the bridge", "nnUNet_extTrainer"),
)
