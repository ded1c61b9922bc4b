//! Single-file checkpoints with the original names (A1111, CompVis), as if they were a folder in diffusers' layout.

mod names;

pub use names::{Architecture, Entry, How, NameTable, Networks, Spelling};
