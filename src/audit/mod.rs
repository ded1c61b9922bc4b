//! What a model draws, counted: detectors, verification, grids, the report.

mod detector;
mod grid;
mod interval;
mod picture;
mod report;
mod verify;

pub use detector::{ClassifierDetector, Detector};
pub use grid::{Grid, GridRow};
pub use interval::{mean_drop, paired_drop, wilson};
pub use picture::{Infotext, encode_png, from_images, to_images};
pub use report::{
    BeforeAfter, Comparison, DetectorRecord, LabelCount, MeanDrop, Rate, Report, RetainAxis, RunRecord, SCHEMA,
    VerifyRecord, peak_memory,
};
pub use verify::{Answer, Shown, Verification, VerifyPlan, verify};
