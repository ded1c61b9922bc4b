//! What a model draws, counted: detectors, verification, drift, grids, the report.

pub mod counting_rules;
mod csv_record;
mod detector;
pub mod detectors;
mod drift;
mod grid;
pub mod html;
pub mod image_processor;
mod interval;
pub mod metrics;
mod model_card;
mod picture;
mod prompt_set;
mod report;
pub mod resample;
pub mod run;
mod structure;
mod trimmed;
mod verify;

pub use detector::{ClassifierDetector, Detection, Detector, Findings};
pub use detectors::{ClipModel, DetectorFiles, Labels, open_all, open_detector};
pub use drift::{
    DRIFT_DEFINITION, Drift, DriftMean, Move, PromptDrift, averaged_down, by_prompt, mean, moves, moves_of,
};
pub use grid::{Grid, GridRow};
pub use interval::{mean_drop, paired_drop, wilson};
pub use model_card::Card;
pub use picture::{Infotext, blurred, encode_png, from_images, to_images};
pub use prompt_set::{Malformed, PromptRow, PromptRows};
pub use report::{
    BeforeAfter, Comparison, ConceptCounts, DetectorRecord, LabelCount, MeanDrop, PreservedCounts, Rate, Report,
    RetainAxis, RunRecord, SCHEMA, VerifyRecord, peak_memory,
};
pub use trimmed::{BlockTrim, block_of, by_block};
pub use verify::{Answer, Drawn, PartCount, Preserved, Shown, Take, Verification, VerifyBatch, VerifyPlan, verify};
