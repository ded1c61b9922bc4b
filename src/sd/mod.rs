//! The networks of Stable Diffusion, one struct a module, fields named as the checkpoint names them.

mod classifier;
mod conditions;
mod pipeline;
mod text_encoder;
mod tokenizer;
mod unet;
mod vae;

pub use classifier::{Axis, Classifier, ClassifierConfig, LayerType};
pub use conditions::Conditions;
pub use pipeline::{SampleOptions, SecondEncoder, StableDiffusion};
pub use text_encoder::{Activation, TextEncoder, TextEncoderConfig, TextOutput};
pub use tokenizer::{Tokenizer, Tokens};
pub use unet::{AddedConditions, Footprint, OneOrEach, Tape, Unet, UnetConfig, backward_through, sinusoid};
pub use vae::{Vae, VaeConfig};
