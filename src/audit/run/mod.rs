//! An audit: every picture that a prompt set asks for, of any number of models, made once, written down as it comes, counted.
//!
//! [`plan`] decides which pictures there are, [`header`] what their bytes depend on, [`manifest`] which are there already,
//! [`render`] makes the others, [`summary`] counts, [`pictures`] are those of the report, [`merge`] joins shards. A folder holds `manifest.jsonl` from the first moment
//! on, and `audit.json`, `audit.csv` and `report.html` once all pictures are there.

mod header;
mod manifest;
mod merge;
mod pictures;
mod plan;
mod render;
mod shard;
mod summary;
mod table;

pub use header::{Header, ModelRecord, PromptsRecord, SCHEMA as MANIFEST_SCHEMA, SettingsRecord, UsedDetector};
pub use manifest::{Entry, Manifest};
pub use merge::{Shards, read_shards};
pub use pictures::{ReportSettings, gallery, picture};
pub use plan::{Column, Frame, PromptSet, Row, Selection, Shot, shots};
pub use render::{Counter, Wanted, Work, draw, render};
pub use shard::Shard;
pub use summary::{Limit, ModelCounts, Summary, write_results};

/// The folder of pictures in an audit's.
pub const IMAGES: &str = "images";
/// The list of finished pictures.
pub const MANIFEST: &str = "manifest.jsonl";
