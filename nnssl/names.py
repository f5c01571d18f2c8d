"""Names of files, folders, keys and suffixes that several parts of nnssl share: plain strings and nothing else."""

from __future__ import annotations

# Environment variables of nnU-Net's three folders.
RAW_VARIABLE = "nnUNet_raw"
PREPROCESSED_VARIABLE = "nnUNet_preprocessed"
RESULTS_VARIABLE = "nnUNet_results"

# Folders of a raw data set.
IMAGES_TR = "imagesTr"
LABELS_TR = "labelsTr"
IMAGES_UN = "imagesUn"  # unlabelled scans; stock nnU-Net does not look into this folder
IMAGES_TS = "imagesTs"
LABELS_TS = "labelsTs"

# Files of a raw or preprocessed data set, and of a model folder.
DATASET_JSON = "dataset.json"
PLANS_JSON = "plans.json"
FINGERPRINT_JSON = "dataset_fingerprint.json"
FACTS_FILE = "facts.sqlite"  # what planning learned about the raw files, in the preprocessed folder of a data set
SPLITS_JSON = "splits_final.json"
DATA_CHECK = "data_check"  # data_check@lab7.json of a preprocessed data set: what planning found in the scans
GT_FOLDER = "gt_segmentations"  # references of the labelled cases in a preprocessed data set folder
UNLABELLED_SUFFIX = "_unlabelled"  # preprocessed unlabelled scans: the folder of the labelled cases plus this suffix

# Folders and files of a run.
FOLD_PREFIX = "fold_"
VALIDATION_FOLDER = "validation"
PSEUDO_FOLDER = "pseudo_labels"
PSEUDO_JSON = "cases.json"  # in that folder: origin, scores and verdict of every scan
SUMMARY_JSON = "summary.json"
SUMMARY_POSTPROCESSED_JSON = "summary_postprocessed.json"  # the scores after post-processing
POSTPROCESSING_JSON = "postprocessing.json"  # the decision of a fold, or of a model
BEST_JSON = "best.json"  # in the results folder of a data set: what nnssl_find_best chose
STUDY_DB = "study.db"  # in the folder of a study
RUN_JSON = "run.json"
PREDICTION_JSON = "predict_from_raw_data_args.json"  # nnU-Net's record of a prediction, beside the masks
PROGRESS_JSONL = "progress.jsonl"
CHECKPOINT_LATEST = "checkpoint_latest.pth"
CHECKPOINT_BEST = "checkpoint_best.pth"
CHECKPOINT_FINAL = "checkpoint_final.pth"
CHECKPOINT_SUPERVISED = "checkpoint_supervised.pth"
SUPERVISED_TRAINER = "SupervisedTrainer"
CHECKPOINT_PATTERN = "checkpoint_*.pth"

# Names of plans and of runs.
DEFAULT_PLANS = "nnUNetPlans"
SEMI_KEY = "nnssl_semi"  # what nnssl adds to plans.json and to checkpoints
BUDGET_TAG = "@lab"  # a plans name ends in this tag and the number of labelled patients: nnUNetPlans@lab7
TAG_SEPARATOR = "@"  # between a name and its tag
NAME_SEPARATOR = "__"  # between trainer, plans and configuration in the name of a model folder

# Keys of dataset.json and splits_final.json.
CASES_KEY = "cases"  # dataset.json: case -> patient and domain
LABELS_KEY = "labels"
FILE_ENDING_KEY = "file_ending"
UNLABELLED_KEY = "unlabelled"  # splits_final.json: the scans of imagesUn that a fold may learn from
LABELLED_ORDER = "labelled_order"  # splits_final.json: the order in which a label budget takes patients
DOMAINS_KEY = "domains"  # splits file of a setting: training case -> domain; the label budget counts in each domain
CLIP_KEY = "nnssl_clip_percentiles"  # plans.json, configuration: percentiles at which each image is clipped
