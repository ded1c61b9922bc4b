//! The networks of Stable Diffusion, one struct a module, fields named as the checkpoint names them.

mod unet;

pub use unet::{AddedConditions, OneOrEach, Unet, UnetConfig, sinusoid};
