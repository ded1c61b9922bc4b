//! Every op of [`crate::nn`] in the shapes that Stable Diffusion has, and in odd ones.

use super::check::{Check, Operand, of, op};
use crate::Result;
use crate::nn::{
    add, add_per_channel, attention, attention_in_bf16, concat_channels, conv2d, from_tokens, geglu, geglu_over, gelu,
    group_norm, layer_norm, linear, quick_gelu, silu, to_tokens, upsample_nearest2x,
};
use candle_core::{DType, Tensor};

/// Both in `f32`: sums in another order. (Products rounded to TF32 would be off by 5e-4 and more.)
const F32: f64 = 1e-4;
/// A frozen weight in `bf16`, for which the other factor is rounded to `bf16` too.
const BF16: f64 = 1e-2;

/// All of them.
pub(super) fn checks() -> Vec<Check> {
    let mut checks = linears();
    checks.extend(convolutions());
    checks.extend(norms());
    checks.extend(pointwise());
    checks.extend(attentions());
    checks.extend(layouts());
    checks
}

/// `weight`, in `f32` and frozen in `bf16` and in `f16` (which is multiplied as `f32`), with what is said of each and its tolerance.
fn each_type(name: &str, weight: &Operand) -> [(String, Operand, f64); 3] {
    [
        (name.into(), weight.clone(), F32),
        (format!("{name}, bf16"), weight.clone().halved(), BF16),
        (format!("{name}, f16"), weight.clone().kept_as(DType::F16), F32),
    ]
}

fn linears() -> Vec<Check> {
    let mut checks = Vec::new();
    let sizes = [(vec![3, 5, 7], 9, true), (vec![2, 320], 1280, true), (vec![2, 77, 768], 320, false)];
    let larger = [(vec![2, 1024, 320], 2560, true), (vec![1, 4096, 320], 320, false), (vec![2, 64, 5120], 1280, true)];
    for (x, outputs, bias) in sizes.into_iter().chain(larger) {
        let weight = of([outputs, x[x.len() - 1]]);
        let what = if bias { "linear with bias" } else { "linear" };
        for (name, weight, tolerance) in each_type(what, &weight) {
            let mut operands = vec![Operand::of(&x), weight];
            operands.extend(bias.then(|| of([outputs])));
            checks.push(op(&name, &operands, tolerance, |x| linear(&x[0], &x[1], x.get(2))));
        }
    }
    for (name, weight, tolerance) in each_type("linear of views", &of([24, 40])) {
        // not contiguous, and contiguous from somewhere in the middle
        checks.push(op(&name, &[of([40, 6, 2]), weight.clone()], tolerance, |x| {
            linear(&x[0].permute((2, 1, 0))?, &x[1], None)
        }));
        checks.push(op(&name, &[of([3, 6, 40]), weight, of([50])], tolerance, |x| {
            let (x, weight, bias) = (x[0].narrow(0, 1, 2)?, x[1].narrow(0, 4, 20)?, x[2].narrow(0, 7, 20)?);
            linear(&x, &weight, Some(&bias))
        }));
    }
    checks
}

/// A convolution: batch, inputs, outputs, height, width, kernel, stride, padding.
const CONVOLUTIONS: [[usize; 8]; 18] = [
    [2, 3, 5, 7, 9, 3, 1, 1],
    [2, 16, 16, 16, 16, 3, 1, 1], // as many channels as rows and columns
    [2, 4, 320, 32, 32, 3, 1, 1],
    [2, 320, 4, 32, 32, 3, 1, 1],
    [1, 320, 320, 64, 64, 3, 1, 1],
    [2, 960, 320, 16, 24, 3, 1, 1],
    [2, 1280, 1280, 8, 8, 3, 1, 1],
    [1, 64, 32, 130, 97, 3, 1, 1],
    [2, 6, 5, 6, 7, 3, 1, 0],
    [2, 320, 320, 32, 32, 3, 2, 1],
    [2, 12, 20, 9, 14, 3, 2, 1],
    [1, 128, 128, 65, 65, 3, 2, 0], // the VAE's, padded on two sides
    [2, 12, 20, 9, 15, 3, 2, 0],
    [2, 640, 320, 32, 32, 1, 1, 0],
    [3, 6, 5, 5, 7, 1, 2, 0],
    [2, 8, 8, 4, 6, 1, 1, 0],
    [2, 12, 8, 11, 10, 5, 1, 2],
    [1, 3, 16, 29, 30, 7, 2, 3],
];

fn convolutions() -> Vec<Check> {
    let mut checks = Vec::new();
    for (i, [batch, inputs, outputs, height, width, kernel, stride, padding]) in CONVOLUTIONS.into_iter().enumerate() {
        let what = format!("conv2d {kernel}x{kernel}, stride {stride}, padding {padding}");
        for (name, weight, tolerance) in each_type(&what, &of([outputs, inputs, kernel, kernel])) {
            let x = of([batch, inputs, height, width]);
            let mut operands = vec![x, weight];
            operands.extend((i % 3 != 1).then(|| of([outputs])));
            checks.push(op(&name, &operands, tolerance, move |x| conv2d(&x[0], &x[1], x.get(2), stride, padding)));
        }
    }
    for (name, weight, tolerance) in each_type("conv2d of views", &of([10, 6, 3, 3])) {
        checks.push(op(&name, &[of([2, 9, 8, 6]), weight.clone()], tolerance, |x| {
            conv2d(&x[0].permute((0, 3, 1, 2))?, &x[1], None, 1, 1)
        }));
        checks.push(op(&name, &[of([3, 6, 8, 8]), weight], tolerance, |x| {
            Ok(conv2d(&x[0].narrow(0, 1, 2)?, &x[1].narrow(0, 2, 8)?, None, 1, 1)?.transpose(2, 3)?) // the gradient is a view
        }));
    }
    checks
}

fn norms() -> Vec<Check> {
    let mut checks = Vec::new();
    let maps = [
        ([2, 6, 5, 7], 3),
        ([2, 320, 32, 32], 32),
        ([1, 128, 128, 128], 32),
        ([2, 2560, 8, 8], 32),
        ([1, 64, 1, 3], 32),
    ];
    for (shape, groups) in maps {
        for (name, with_silu) in [("group_norm", false), ("group_norm, silu", true)] {
            let operands = [of(shape).scaled(2.0).shifted(3.0), of([shape[1]]), of([shape[1]])];
            checks.push(op(name, &operands, F32, move |x| group_norm(&x[0], &x[1], &x[2], groups, 1e-5, with_silu)));
        }
    }
    let views = [of([2, 5, 7, 6]), of([8]), of([8])];
    checks.push(op("group_norm of views", &views, F32, |x| {
        let (weight, bias) = (x[1].narrow(0, 1, 6)?, x[2].narrow(0, 2, 6)?);
        let y = group_norm(&x[0].permute((0, 3, 1, 2))?, &weight, &bias, 2, 1e-6, true)?;
        Ok(y.permute((0, 2, 3, 1))?)
    }));
    for shape in [vec![3, 5, 7], vec![2, 77, 768], vec![1, 4096, 320], vec![2, 64, 1280], vec![5, 2000]] {
        let features = shape[shape.len() - 1];
        let operands = [Operand::of(&shape).scaled(2.0).shifted(3.0), of([features]), of([features])];
        checks.push(op("layer_norm", &operands, F32, |x| layer_norm(&x[0], &x[1], &x[2], 1e-5)));
    }
    checks.push(op("layer_norm of views", &[of([7, 40, 3]), of([40]), of([40])], F32, |x| {
        Ok(layer_norm(&x[0].transpose(1, 2)?.narrow(0, 2, 4)?, &x[1], &x[2], 1e-5)?.transpose(0, 1)?)
    }));
    checks
}

type Pointwise = fn(&Tensor) -> Result<Tensor>;

fn pointwise() -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, f) in [("silu", silu as Pointwise), ("gelu", gelu), ("quick_gelu", quick_gelu)] {
        for shape in [vec![3, 1], vec![7, 2003], vec![2, 320, 32, 32]] {
            checks.push(op(name, &[Operand::of(&shape).scaled(4.0)], F32, move |x| f(&x[0])));
        }
        checks.push(op(&format!("{name} of views"), &[of([6, 5, 4])], F32, move |x| {
            Ok(f(&x[0].narrow(0, 1, 4)?.transpose(0, 2)?)?.transpose(1, 2)?)
        }));
    }
    for shape in [vec![3, 5, 14], vec![2, 1024, 2560], vec![2, 64, 10240]] {
        checks.push(op("geglu", &[Operand::of(&shape).scaled(2.0)], F32, |x| geglu(&x[0])));
        checks.push(op("geglu, gradient in place", &[Operand::of(&shape)], F32, |x| geglu_over((&x[0] * 2.0)?)));
    }
    checks.push(op("geglu of views", &[of([5, 8, 3])], F32, |x| {
        Ok(geglu(&x[0].narrow(0, 1, 3)?.transpose(1, 2)?)?.transpose(0, 1)?)
    }));
    checks
}

/// An attention: batch, queries, keys, heads, features of a head, whether causal.
const ATTENTIONS: [(usize, usize, usize, usize, usize, bool); 17] = [
    (2, 1, 2, 1, 8, false),
    (2, 3, 2, 2, 8, false),
    (2, 17, 33, 3, 8, false),
    (2, 5, 7, 2, 5, false),
    (1, 4096, 4096, 8, 40, false), // SD 1.x, 512 x 512, level 0
    (2, 1024, 1024, 8, 80, false),
    (2, 256, 256, 8, 160, false),
    (2, 64, 64, 8, 160, false),
    (2, 4096, 77, 8, 40, false),
    (2, 1024, 77, 8, 80, false),
    (1, 256, 77, 8, 160, false),
    (2, 576, 576, 10, 64, false), // SD 2.x and SDXL
    (2, 1000, 77, 5, 64, false),
    (2, 77, 77, 12, 64, true), // CLIP
    (1, 32, 32, 4, 24, true),
    (1, 130, 130, 2, 8, true),
    (1, 1024, 1024, 1, 512, false), // the VAE
];

fn attentions() -> Vec<Check> {
    let mut checks = Vec::new();
    for (batch, s, t, heads, d, causal) in ATTENTIONS {
        let what = if causal {
            "causal attention"
        } else if s == t {
            "self-attention"
        } else {
            "cross-attention"
        };
        let (q, k) = (of([batch, s, heads * d]).scaled(2.0), of([batch, t, heads * d]));
        let name = format!("{what}, {heads} x {d}");
        let operands = [q, k.clone(), k];
        checks.push(op(&name, &operands, F32, move |x| attention(&x[0], &x[1], &x[2], heads, causal)));
        // scores are as large as ten: rounding what they are made of would change the probabilities by as many parts in a hundred
        let operands = operands.map(Operand::rounded);
        checks.push(op(&format!("{name}, bf16"), &operands, BF16, move |x| {
            attention_in_bf16(true);
            let y = attention(&x[0], &x[1], &x[2], heads, causal);
            attention_in_bf16(false);
            y
        }));
    }
    // scores of more than 100: what is not the largest vanishes, and nothing overflows; a score's rounding shows in its exponential
    let sharp = [of([1, 70, 32]).scaled(40.0), of([1, 90, 32]), of([1, 90, 32])];
    checks.push(op("attention, large scores", &sharp, 5e-4, |x| attention(&x[0], &x[1], &x[2], 2, false)));
    checks.push(op("attention of views", &[of([2, 80, 6]), of([3, 5, 160]), of([80, 2, 5])], F32, |x| {
        let (q, k, v) = (x[0].transpose(1, 2)?, x[1].narrow(0, 1, 2)?.narrow(2, 40, 80)?, x[2].permute((1, 2, 0))?);
        Ok(attention(&q, &k, &v, 2, false)?.transpose(0, 1)?)
    }));
    checks
}

fn layouts() -> Vec<Check> {
    let mut checks = Vec::new();
    for [b, c, d, h, w] in [[2, 3, 4, 5, 7], [2, 320, 640, 32, 32], [1, 1280, 1280, 8, 8]] {
        let x = of([b, c, h, w]);
        checks.push(op("upsample_nearest2x", std::slice::from_ref(&x), F32, |x| upsample_nearest2x(&x[0])));
        checks.push(op("concat_channels", &[x.clone(), of([b, d, h, w])], F32, |x| concat_channels(&x[0], &x[1])));
        checks.push(op("add", &[x.clone(), x.clone()], F32, |x| add(&x[0], &x[1])));
        checks.push(op("add_per_channel", &[x.clone(), of([b, c])], F32, |x| add_per_channel(&x[0], &x[1])));
        checks.push(op("to_tokens", &[x], F32, |x| to_tokens(&x[0])));
        checks.push(op("from_tokens", &[of([b, h * w, c])], F32, move |x| from_tokens(&x[0], h, w)));
    }
    checks.push(op("upsample_nearest2x of views", &[of([3, 4, 6, 5])], F32, |x| {
        Ok(upsample_nearest2x(&x[0].narrow(0, 1, 2)?.transpose(2, 3)?)?.transpose(2, 3)?)
    }));
    checks.push(op("concat_channels of views", &[of([2, 5, 4, 3]), of([3, 2, 4, 5])], F32, |x| {
        Ok(concat_channels(&x[0].transpose(1, 3)?, &x[1].narrow(0, 1, 2)?)?.transpose(1, 2)?)
    }));
    checks.push(op("add of views", &[of([4, 3]), of([4, 4])], F32, |x| {
        Ok(add(&x[0].t()?, &x[1].narrow(0, 1, 3)?)?.t()?)
    }));
    checks.push(op("add_per_channel of views", &[of([2, 4, 3, 5]), of([6, 2])], F32, |x| {
        Ok(add_per_channel(&x[0].transpose(1, 3)?, &x[1].narrow(0, 1, 5)?.t()?)?.transpose(2, 3)?)
    }));
    checks.push(op("to_tokens of views", &[of([3, 4, 5, 6])], F32, |x| {
        Ok(to_tokens(&x[0].narrow(0, 1, 2)?.permute((0, 3, 1, 2))?)?.transpose(1, 2)?)
    }));
    checks.push(op("from_tokens of views", &[of([5, 6, 2])], F32, |x| {
        Ok(from_tokens(&x[0].permute((2, 1, 0))?, 2, 3)?.transpose(1, 2)?)
    }));
    checks
}
