//! The text as cross-attention reads it.

use super::transformer::Attention;
use crate::Result;
use candle_core::{Tensor, TensorId};
use std::cell::RefCell;
use std::collections::HashMap;

/// Keys and values of a layer, `(B, tokens, channels)` each.
pub type Keys = (Tensor, Tensor);

/// A text's hidden states and, while a picture is denoised, what the layers have made of them: every step asks for the same.
pub struct Context {
    tokens: Tensor,
    /// By the weight that they were made with.
    made: Option<RefCell<HashMap<TensorId, Keys>>>,
}

impl Context {
    /// `(B, tokens, cross_attention_dim)`, from which each layer makes keys and values whenever it is asked.
    pub fn new(tokens: &Tensor) -> Self {
        Self { tokens: tokens.clone(), made: None }
    }

    /// The same, with keys and values made once: for networks that do not change and keep no graph.
    pub fn remembering(tokens: &Tensor) -> Self {
        Self { made: Some(RefCell::default()), ..Self::new(tokens) }
    }

    /// How many rows.
    pub fn rows(&self) -> Result<usize> {
        Ok(self.tokens.dim(0)?)
    }

    /// What `layer` reads.
    pub(super) fn keys(&self, layer: &Attention) -> Result<Keys> {
        let Some(made) = &self.made else { return layer.keys(&self.tokens) };
        if let Some(keys) = made.borrow().get(&layer.id()) {
            return Ok(keys.clone());
        }
        let keys = layer.keys(&self.tokens)?;
        made.borrow_mut().insert(layer.id(), keys.clone());
        Ok(keys)
    }
}
