//! An image classifier: transformers' `ResNetForImageClassification`, batch norm in its evaluation form.

use crate::nn::{Conv2d, Linear, ParamPath, ParamStore};
use crate::{Error, Result};
use candle_core::{D, Tensor};
use serde::Deserialize;
use std::collections::BTreeMap;

/// `config.json` of a ResNet.
#[derive(Debug, Clone, Deserialize)]
pub struct ClassifierConfig {
    /// Channels of the pictures.
    #[serde(default = "three")]
    pub num_channels: usize,
    /// Channels after the stem.
    pub embedding_size: usize,
    /// Channels of each stage.
    pub hidden_sizes: Vec<usize>,
    /// Layers of each stage.
    pub depths: Vec<usize>,
    /// `basic` (two 3x3 convolutions) or `bottleneck`.
    pub layer_type: LayerType,
    /// The first stage halves the picture too.
    #[serde(default)]
    pub downsample_in_first_stage: bool,
    /// In a bottleneck, the first convolution has the stride rather than the second.
    #[serde(default)]
    pub downsample_in_bottleneck: bool,
    /// Name of each output.
    pub id2label: BTreeMap<usize, String>,
}

/// The two kinds of residual layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerType {
    /// ResNet-18 and 34.
    Basic,
    /// ResNet-50 and up.
    Bottleneck,
}

fn three() -> usize {
    3
}

/// `convolution` without bias, and `normalization` as a scale and a shift by channel.
struct ConvLayer {
    convolution: Conv2d,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
}

impl ConvLayer {
    fn new(
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        relu: bool,
        path: &ParamPath<'_>,
    ) -> Result<Self> {
        const EPS: f64 = 1e-5;
        let norm = path.pp("normalization");
        let get = |name: &str| norm.get(&[outputs], name);
        let scale = (get("weight")? / (get("running_var")? + EPS)?.sqrt()?)?;
        let shift = (get("bias")? - (get("running_mean")? * &scale)?)?;
        let column = |t: Tensor| t.reshape((1, outputs, 1, 1));
        let convolution = Conv2d::no_bias(inputs, outputs, kernel, stride, kernel / 2, path.pp("convolution"))?;
        Ok(Self { convolution, scale: column(scale)?, shift: column(shift)?, relu })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.convolution.forward(x)?.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)?;
        if self.relu { Ok(y.relu()?) } else { Ok(y) }
    }
}

/// `stages.S.layers.L`.
struct Layer {
    layer: Vec<ConvLayer>,
    shortcut: Option<ConvLayer>,
}

impl Layer {
    fn new(c: &ClassifierConfig, inputs: usize, outputs: usize, stride: usize, path: &ParamPath<'_>) -> Result<Self> {
        let conv = |i: usize, inputs, outputs, kernel, stride, relu| {
            ConvLayer::new(inputs, outputs, kernel, stride, relu, &path.pp("layer").pp(i))
        };
        let layer = match c.layer_type {
            LayerType::Basic => {
                vec![conv(0, inputs, outputs, 3, stride, true)?, conv(1, outputs, outputs, 3, 1, false)?]
            }
            LayerType::Bottleneck => {
                let narrow = outputs / 4;
                let (first, second) = if c.downsample_in_bottleneck { (stride, 1) } else { (1, stride) };
                vec![
                    conv(0, inputs, narrow, 1, first, true)?,
                    conv(1, narrow, narrow, 3, second, true)?,
                    conv(2, narrow, outputs, 1, 1, false)?,
                ]
            }
        };
        let shortcut = (inputs != outputs || stride != 1)
            .then(|| ConvLayer::new(inputs, outputs, 1, stride, false, &path.pp("shortcut")));
        Ok(Self { layer, shortcut: shortcut.transpose()? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x)?,
            None => x.clone(),
        };
        let mut h = x.clone();
        for conv in &self.layer {
            h = conv.forward(&h)?;
        }
        Ok((h + residual)?.relu()?)
    }
}

/// The labels of one axis («shape: star» belongs to axis «shape»).
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Name of the axis.
    pub name: String,
    /// Indices of its labels among the outputs.
    pub labels: Vec<usize>,
}

/// Labels grouped by what stands before their colon; a label without one is an axis `label`.
pub fn axes_of(labels: &[String]) -> Vec<Axis> {
    let mut axes: Vec<Axis> = Vec::new();
    for (i, label) in labels.iter().enumerate() {
        let name = label.split_once(':').map_or("label", |(axis, _)| axis);
        match axes.iter_mut().find(|axis| axis.name == name) {
            Some(axis) => axis.labels.push(i),
            None => axes.push(Axis { name: name.into(), labels: vec![i] }),
        }
    }
    axes
}

/// The classifier.
pub struct Classifier {
    embedder: ConvLayer,
    layers: Vec<Layer>,
    head: Linear,
    labels: Vec<String>,
}

impl Classifier {
    /// Builds the network.
    ///
    /// # Errors
    /// If the config makes no sense or the load is not clean.
    pub fn new(c: &ClassifierConfig, params: &ParamStore) -> Result<Self> {
        let labels: Vec<String> = c.id2label.values().cloned().collect();
        if c.hidden_sizes.len() != c.depths.len() || c.hidden_sizes.is_empty() || c.depths.contains(&0) {
            return Err(Error::usage(format!(
                "hidden_sizes has {} entries but depths has {}",
                c.hidden_sizes.len(),
                c.depths.len()
            )));
        }
        if labels.is_empty() || !c.id2label.keys().copied().eq(0..labels.len()) {
            return Err(Error::usage("id2label must name the outputs 0, 1, 2, ..."));
        }
        let loader = params.loader().ignoring("num_batches_tracked");
        let root = loader.root();
        let resnet = root.pp("resnet");
        let embedder = ConvLayer::new(c.num_channels, c.embedding_size, 7, 2, true, &resnet.pp("embedder.embedder"))?;
        let (mut layers, mut inputs) = (Vec::new(), c.embedding_size);
        for (stage, (outputs, depth)) in c.hidden_sizes.iter().zip(&c.depths).enumerate() {
            for i in 0..*depth {
                let halve = i == 0 && (stage > 0 || c.downsample_in_first_stage);
                let path = resnet.pp("encoder.stages").pp(stage).pp("layers").pp(i);
                layers.push(Layer::new(c, inputs, *outputs, if halve { 2 } else { 1 }, &path)?);
                inputs = *outputs;
            }
        }
        let head = Linear::new(inputs, labels.len(), root.pp("classifier.1"))?;
        loader.finish("classifier")?;
        Ok(Self { embedder, layers, head, labels })
    }

    /// Names of the outputs.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// One number for each label, before a sigmoid.
    ///
    /// # Shape
    /// `(B, 3, H, W)` in -1 to 1, on any device -> `(B, labels)`.
    pub fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let pixels = pixels.to_device(self.embedder.scale.device())?;
        let mut h = max_pool(&self.embedder.forward(&pixels)?)?;
        for layer in &self.layers {
            h = layer.forward(&h)?;
        }
        self.head.forward(&h.flatten_from(2)?.mean(D::Minus1)?)
    }

    /// The labels by axis; see [`axes_of`].
    pub fn axes(&self) -> Vec<Axis> {
        axes_of(&self.labels)
    }

    /// For each picture, the label with the largest logit on each axis.
    pub fn classify(&self, pixels: &Tensor) -> Result<Vec<Vec<String>>> {
        let axes = self.axes();
        let logits: Vec<Vec<f32>> = self.logits(pixels)?.to_vec2()?;
        let best = |row: &Vec<f32>, axis: &Axis| {
            let best = axis.labels.iter().copied().max_by(|a, b| row[*a].total_cmp(&row[*b]));
            best.map(|i| self.labels[i].clone())
        };
        Ok(logits.iter().map(|row| axes.iter().filter_map(|axis| best(row, axis)).collect()).collect())
    }
}

/// `MaxPool2d(kernel_size=3, stride=2, padding=1)`; the input follows a ReLU, so zeros pad as well as minus infinity.
fn max_pool(x: &Tensor) -> Result<Tensor> {
    let x = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
    Ok(x.max_pool2d_with_stride(3, 2)?)
}
