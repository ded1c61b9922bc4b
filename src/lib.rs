//! Removes a concept from the weights of a Stable Diffusion model, shows that it is gone, and shows that the rest is
//! still there.
//!
//! Data flows one way: `hub -> checkpoint -> sd`, `concept -> erase(sd) -> checkpoint`, `sd -> diffusion -> audit`. A module
//! imports only from those to its left in: nn, diffusion, sd, concept, erase, checkpoint, hub, audit, bench, cli.
//!
//! The whole pipeline on a page, far too small to erase anything:
//!
//! ```
//! use erase_concept::{checkpoint, concept::Concept, erase, hub, progress::Silent};
//!
//! // a model's name -> files -> networks
//! let files = hub::resolve("demo")?;
//! let loaded = checkpoint::load_model(&files)?;
//!
//! // what to forget, and how
//! let concept = Concept::resolve("star", None)?;
//! let mut settings = erase::Settings::preset("balanced")?;
//! (settings.data.forget, settings.data.retain, settings.data.steps) = (2, 2, 2);
//! (settings.score_batches, settings.repair_steps) = (1, 1);
//!
//! // the model makes its own data; then score, trim, repair
//! let data = erase::Data::sample(&loaded.model, &concept, &settings, 0, &mut Silent)?;
//! let plan = erase::plan(&loaded.model, &settings, Default::default())?;
//! let outcome = erase::scissorhands(&loaded.model, &concept, &data, &settings, 0, plan, &mut Silent)?;
//! assert!(outcome.trim.total > 0 && outcome.changed.keys().all(|name| name.contains("attn2")));
//!
//! // a diffusers folder: whole, or not at all
//! let parent = tempfile::tempdir().expect("a temporary folder");
//! let folder = checkpoint::OutputFolder::create(&parent.path().join("erased"), false)?;
//! checkpoint::save_model(&files, &loaded, &outcome.changed, folder.path(), &Default::default())?;
//! folder.commit()?;
//! # Ok::<(), erase_concept::Error>(())
//! ```

pub mod audit;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod concept;
#[doc(hidden)]
pub mod counting;
pub mod diffusion;
pub mod erase;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod hub;
pub mod nn;
pub mod process;
pub mod progress;
pub mod sd;

pub use error::{Error, Result};
