//! Files to named tensors and back: a diffusers folder (or one embedded in the program), or a single file with the original
//! names, is read, checked, and written whole or not at all.

mod copy;
mod disk;
mod dtype;
mod files;
mod format;
mod front_matter;
mod hash;
mod header;
pub mod inspect;
mod load;
pub mod lora;
mod malformed;
mod modelspec;
mod output_folder;
pub mod patch;
mod precision;
mod read;
mod save;
pub mod single_file;
mod temporary;
mod weights;
mod write;

pub use copy::Copying;
#[doc(hidden)]
pub use disk::fail_at;
pub(crate) use files::is_top_level;
pub use files::{Inventory, ModelFiles};
pub use format::{FORMATS, Format};
pub use front_matter::License;
pub use hash::{base_sha256, sha256_file, sha256_hex};
pub(crate) use load::check_pipeline;
pub use load::{
    LoadedModel, load_classifier, load_classifier_on, load_component, load_model, load_model_on, load_model_with,
    save_model,
};
#[doc(hidden)]
pub use malformed::read_header;
pub use modelspec::{About, modelspec, title};
pub use output_folder::OutputFolder;
pub use precision::{Loading, Precision};
pub use read::{Component, load_tensors, load_tensors_on};
pub use save::{erase_metadata, save_edited, save_edited_as};
pub use single_file::{SingleFile, write_edited_single_file};
pub use temporary::{abandon, sweep_files};
pub use weights::WeightFiles;
pub use write::{write_file, write_file_atomic, write_safetensors};

/// The single file in the folder of a result.
pub const ERASED: &str = "erased.safetensors";

/// The canonical name of a UNet's weights in a diffusers folder; variants and shards are found from it.
pub const UNET_WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";
