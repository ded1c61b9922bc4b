//! The networks of Stable Diffusion, one struct a module, fields named as the checkpoint names them.

mod classifier;
mod clip;
mod conditions;
mod encoder;
mod pipeline;
mod replicas;
mod safety_checker;
mod text_encoder;
mod tokenizer;
mod unet;
mod vae;
mod vit;

pub use classifier::{Axis, Classifier, ClassifierConfig, LayerType, axes_of};
pub use clip::{Clip, ClipConfig, ClipVision, ClipVisionConfig};
pub use conditions::Conditions;
pub use encoder::Activation;
pub use pipeline::{SampleOptions, SecondEncoder, StableDiffusion};
pub use replicas::{Replica, Replicas};
pub use safety_checker::{SafetyChecker, Verdict};
pub use text_encoder::{TextEncoder, TextEncoderConfig, TextOutput};
pub use tokenizer::{Tokenizer, Tokens};
pub use unet::{AddedConditions, Footprint, OneOrEach, Tape, Unet, UnetConfig, backward_through, sinusoid};
pub use vae::{Vae, VaeConfig};
pub use vit::{Vit, VitConfig};
