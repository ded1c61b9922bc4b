//! Differentiable layers that know which of their weights are frozen.
//!
//! Every op works on `f32` tensors (on a GPU also on `bf16`) in row-major (NCHW or `(batch, tokens, features)`) order. Whether an operand needs a
//! gradient is asked of the operand itself (`Tensor::track_op`): a plain tensor is frozen and costs nothing, a `Var`'s
//! tensor is trainable. Nothing here knows Stable Diffusion.

mod activation;
mod attention;
mod backward;
mod combine;
mod conv2d;
#[cfg(feature = "cuda")]
mod cuda;
mod deal;
pub mod device;
mod feed_forward;
mod geglu_linear;
mod group_norm;
mod kernels;
mod layer_norm;
mod layout;
mod linear;
mod params;
mod record;
mod release;
mod rows;
mod self_attention;
mod stay;
mod total;
mod upsample;

pub use activation::{geglu, geglu_over, gelu, quick_gelu, silu};
pub use attention::{attention, attention_beside, attention_in_bf16};
pub use backward::{Gradients, accumulate, backward, backward_recorded, complete, gather, on_deep_stack};
pub use combine::{add, add_last, concat_channels, repeat_rows};
pub use conv2d::{Conv2d, conv2d};
pub use deal::{across, deal};
pub use device::{ComputeDevice, DeviceChoice, Devices};
pub use feed_forward::feed_forward_by_rows;
pub use geglu_linear::geglu_linear_over;
pub use group_norm::{GroupNorm, group_norm};
pub use kernels::instructions::Instructions;
pub use layer_norm::{LayerNorm, layer_norm};
pub use layout::{add_per_channel, from_tokens, to_tokens};
pub use linear::{Linear, linear};
pub use params::{LoadReport, Loader, ParamPath, ParamStore, Shapes};
pub use record::{Record, forget, record, record_lean};
pub use release::{done_with, release};
pub use rows::{assuming_rows, by_rows, side_by_side};
pub use self_attention::self_attention;
pub use stay::Stay;
pub use total::{read, row_sums, total};
pub use upsample::upsample_nearest2x;
