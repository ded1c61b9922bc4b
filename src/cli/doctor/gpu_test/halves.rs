//! The ops on activations in `bf16`, as a GPU has them where weights are kept so. On the CPU they are `f32`.

use super::check::{Check, Operand, of, op};
use crate::Result;
use crate::nn::{
    add, add_per_channel, attention, attention_in_bf16, concat_channels, conv2d, from_tokens, geglu, group_norm,
    layer_norm, linear, silu, to_tokens, upsample_nearest2x,
};
use candle_core::{DType, Tensor};

/// A result and its gradients are rounded to 8 bits, as is what lies between.
const TOLERANCE: f64 = 1e-2;

/// In `bf16`, if this is on a GPU.
fn halved(x: &Tensor) -> Result<Tensor> {
    Ok(if x.device().is_cuda() { x.to_dtype(DType::BF16)? } else { x.clone() })
}

/// The check of an op, whose first `maps` operands (and gradients) are `bf16`.
fn check(name: &str, operands: Vec<Operand>, maps: usize, f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Check {
    let rounded = |(i, x): (usize, Operand)| if i < maps { x.rounded() } else { x };
    let operands: Vec<Operand> = operands.into_iter().enumerate().map(rounded).collect();
    op(&format!("{name}, bf16 maps"), &operands, TOLERANCE, move |x| {
        let mut x = x.to_vec();
        for map in x.iter_mut().take(maps) {
            *map = halved(map)?;
        }
        Ok(f(&x)?.to_dtype(DType::F32)?)
    })
}

/// All of them.
pub(super) fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    for (shape, groups) in [([2, 6, 5, 7], 3), ([2, 320, 32, 32], 32), ([2, 640, 8, 8], 32)] {
        for with_silu in [false, true] {
            let name = if with_silu { "group_norm, silu" } else { "group_norm" };
            checks.push(check(name, vec![of(shape), of([shape[1]]), of([shape[1]])], 1, move |x| {
                group_norm(&x[0], &x[1], &x[2], groups, 1e-5, with_silu)
            }));
        }
    }
    for shape in [vec![3, 5, 7], vec![2, 1024, 320], vec![2, 64, 1280]] {
        let features = shape[shape.len() - 1];
        checks.push(check("layer_norm", vec![Operand::of(&shape), of([features]), of([features])], 1, |x| {
            layer_norm(&x[0], &x[1], &x[2], 1e-5)
        }));
    }
    for shape in [vec![3, 5, 14], vec![2, 1024, 2560]] {
        checks.push(check("silu", vec![Operand::of(&shape)], 1, |x| silu(&x[0])));
        checks.push(check("geglu", vec![Operand::of(&shape)], 1, |x| geglu(&x[0])));
    }
    for [b, c, d, h, w] in [[2, 3, 4, 5, 7], [2, 320, 640, 32, 32]] {
        let x = of([b, c, h, w]);
        checks.push(check("upsample_nearest2x", vec![x.clone()], 1, |x| upsample_nearest2x(&x[0])));
        checks.push(check("concat_channels", vec![x.clone(), of([b, d, h, w])], 2, |x| concat_channels(&x[0], &x[1])));
        checks.push(check("concat_channels", vec![x.clone(), x.clone()], 1, |x| concat_channels(&x[0], &x[1])));
        checks.push(check("add", vec![x.clone(), x.clone()], 2, |x| add(&x[0], &x[1])));
        checks.push(check("add", vec![x.clone(), x.clone()], 1, |x| add(&x[0], &x[1])));
        checks.push(check("add_per_channel", vec![x.clone(), of([b, c])], 1, |x| add_per_channel(&x[0], &x[1])));
        checks.push(check("to_tokens", vec![x], 1, |x| to_tokens(&x[0])));
        checks.push(check("from_tokens", vec![of([b, h * w, c])], 1, move |x| from_tokens(&x[0], h, w)));
    }
    checks.extend(products());
    checks
}

fn products() -> Vec<Check> {
    let mut checks = Vec::new();
    let sizes = [(vec![3, 5, 7], 9, true), (vec![2, 1024, 320], 1280, true), (vec![2, 64, 1280], 320, false)];
    for (shape, outputs, bias) in sizes {
        let weight = of([outputs, shape[shape.len() - 1]]);
        for weight in [weight.clone().rounded(), weight.halved()] {
            let mut operands = vec![Operand::of(&shape), weight];
            operands.extend(bias.then(|| of([outputs])));
            checks.push(check("linear", operands, 1, |x| linear(&x[0], &x[1], x.get(2))));
        }
    }
    for [batch, inputs, outputs, height, width, kernel, stride, padding] in [
        [2, 6, 5, 7, 9, 3, 1, 1],
        [2, 320, 320, 32, 32, 3, 1, 1],
        [2, 1280, 640, 8, 8, 3, 1, 1],
        [2, 320, 320, 32, 32, 3, 2, 1],
        [2, 640, 320, 16, 16, 1, 1, 0],
    ] {
        let weight = of([outputs, inputs, kernel, kernel]);
        for weight in [weight.clone().rounded(), weight.halved()] {
            let operands = vec![of([batch, inputs, height, width]), weight, of([outputs])];
            let name = format!("conv2d {kernel}x{kernel}, stride {stride}");
            checks.push(check(&name, operands, 1, move |x| conv2d(&x[0], &x[1], Some(&x[2]), stride, padding)));
        }
    }
    // keys and values of an f32 text, as in training, and of maps
    for (maps, batch, s, t, heads, d) in [
        (1, 2, 1000, 77, 8, 40),
        (3, 1, 1024, 1024, 8, 40),
        (3, 2, 256, 256, 8, 80),
        (3, 2, 64, 64, 8, 160),
        (3, 1, 256, 256, 1, 512),
    ] {
        let key = of([batch, t, heads * d]).rounded();
        let operands = vec![of([batch, s, heads * d]), key.clone(), key];
        checks.push(check(&format!("attention, {heads} x {d}"), operands, maps, move |x| {
            attention_in_bf16(true);
            let y = attention(&x[0], &x[1], &x[2], heads, false);
            attention_in_bf16(false);
            y
        }));
    }
    checks
}
