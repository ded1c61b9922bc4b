//! Removes a concept from the weights of a Stable Diffusion model, shows that it is gone, and shows that the rest is
//! still there.
//!
//! Data flows one way: `hub -> checkpoint -> sd`, `concept -> erase(sd) -> checkpoint`, `sd -> diffusion -> audit`.

pub mod audit;
pub mod checkpoint;
pub mod cli;
pub mod concept;
pub mod diffusion;
pub mod erase;
pub mod error;
pub mod hub;
pub mod nn;
pub mod progress;
pub mod sd;

pub use error::{Error, Result};
