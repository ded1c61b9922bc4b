//! An audit: every picture that a prompt set asks for, of any number of models, made once, written down as it comes, counted.
//!
//! [`plan`] decides which pictures there are, [`header`] what their bytes depend on, [`manifest`] which are there already,
//! [`render`] makes the others, [`judge`] looks at them (also at those of before), [`summary`] counts, [`numbers`] computes
//! metrics, [`pictures`] are those of the report, [`merge`] joins shards. A folder holds `manifest.jsonl` from the first moment
//! on, and `audit.json`, `audit.csv` and `report.html` once all pictures are there.

mod clip;
mod counts;
mod header;
mod judge;
mod manifest;
mod merge;
mod numbers;
mod pictures;
mod plan;
mod reference;
mod render;
mod shard;
mod summary;
mod table;

pub use clip::{ClipEye, ClipLook};
pub use counts::{Counts, group_column, rates};
pub use header::{
    Against, Header, MetricsRecord, ModelRecord, PromptsRecord, SCHEMA as MANIFEST_SCHEMA, SettingsRecord, UsedClip,
    UsedDetector,
};
pub use judge::{Counter, Judgement, Judges, TOGETHER, judge, pair_up};
pub use manifest::{Entry, Left, Manifest};
pub use merge::{Shards, read_shards};
pub use numbers::{ModelNumbers, PAIRED_DEFINITION, PairedLabel};
pub use pictures::{ReportSettings, gallery, picture};
pub use plan::{Column, Frame, PromptSet, Row, Selection, Shot, shots};
pub use reference::{REFERENCE, Reference};
pub use render::{Wanted, Work, draw, render};
pub use shard::Shard;
pub use summary::{Limit, ModelCounts, Summary, write_results};

/// The folder of pictures in an audit's.
pub const IMAGES: &str = "images";
/// The list of finished pictures.
pub const MANIFEST: &str = "manifest.jsonl";
