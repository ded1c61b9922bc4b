//! Our fused ops against the same maths in candle's ops, forward and forward with backward, at the demo's sizes.
//!
//! `cargo bench --bench nn [-- filter]`; medians of repeated runs.

use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Result, Shape, Tensor, Var};
use erase_concept::nn;
use std::time::Instant;

/// A scalar whose gradient is the given tensor, so that only the op itself is timed.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

struct Case {
    name: String,
    shapes: Vec<Vec<usize>>,
    /// Multiplications and additions of the forward pass.
    flops: f64,
    ours: Op,
    composite: Op,
}

/// As the program itself has it.
#[global_allocator]
static ALLOCATOR: erase_concept::process::Allocator = erase_concept::process::Allocator;

fn main() -> Result<()> {
    // SAFETY: no other thread has been started yet.
    unsafe { erase_concept::process::set_up(None) };
    let filter: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    println!(
        "{:<44} {:>17} {:>9} {:>8} {:>17} {:>8}",
        "op", "forward, ours", "composite", "GFLOP/s", "and backward, ours", "composite"
    );
    for case in cases() {
        if !filter.is_empty() && !filter.iter().any(|f| case.name.contains(f.as_str())) {
            continue;
        }
        let (ours, all) = (time(&case, &case.ours, false)?, time(&case, &case.ours, true)?);
        let (composite, composite_all) = (time(&case, &case.composite, false)?, time(&case, &case.composite, true)?);
        let rate = if case.flops > 0.0 { format!("{:.0}", case.flops / ours / 1e6) } else { String::new() };
        println!(
            "{:<44} {ours:>14.3} ms {composite:>6.3} ms {rate:>8} {all:>14.3} ms {composite_all:>6.3} ms",
            case.name
        );
    }
    Ok(())
}

/// The median time in milliseconds.
fn time(case: &Case, op: &Op, backward: bool) -> Result<f64> {
    let tensors = case.shapes.iter().map(|shape| Tensor::rand(-1f32, 1.0, shape.as_slice(), &Device::Cpu));
    let mut operands: Vec<Tensor> = tensors.collect::<Result<_>>()?;
    if backward {
        operands = operands.iter().map(|x| Ok(Var::from_tensor(x)?.into_inner())).collect::<Result<_>>()?;
    }
    let weights = op(&operands)?.detach().ones_like()?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < 5 || (begin.elapsed().as_secs_f64() < 0.5 && times.len() < 200) {
        let start = Instant::now();
        let y = op(&operands)?;
        if backward {
            y.apply_op1(Seed(weights.clone()))?.backward()?;
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn case(
    name: String,
    shapes: &[&[usize]],
    flops: f64,
    ours: impl Fn(&[Tensor]) -> erase_concept::Result<Tensor> + 'static,
    composite: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
) -> Case {
    let ours: Op = Box::new(move |x| ours(x).map_err(candle_core::Error::wrap));
    Case { name, shapes: shapes.iter().map(|s| s.to_vec()).collect(), flops, ours, composite: Box::new(composite) }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (rows, inputs, outputs) in [
        (24 * 256, 64, 64),
        (24 * 256, 64, 512),
        (24 * 64, 128, 128),
        (24 * 64, 128, 1024),
        (24 * 32, 64, 64),
        (24, 64, 256),
        (4096, 320, 320),
        (4096, 320, 2560),
    ] {
        all.push(case(
            format!("linear {inputs} -> {outputs}, {rows} rows"),
            &[&[rows, inputs], &[outputs, inputs], &[outputs]],
            2.0 * (rows * inputs * outputs) as f64,
            |x| nn::linear(&x[0], &x[1], Some(&x[2])),
            |x| x[0].matmul(&x[1].t()?)?.broadcast_add(&x[2]),
        ));
    }
    for (batch, s, t, heads, d) in [
        (24, 256, 256, 4, 16),
        (24, 256, 32, 4, 16),
        (24, 64, 64, 4, 32),
        (24, 64, 32, 4, 32),
        (1, 4096, 4096, 8, 40),
        (1, 4096, 77, 8, 40),
    ] {
        all.push(case(
            format!("attention {batch} x {heads}, {s} x {t} x {d}"),
            &[&[batch, s, heads * d], &[batch, t, heads * d], &[batch, t, heads * d]],
            4.0 * (batch * heads * s * t * d) as f64,
            move |x| nn::attention(&x[0], &x[1], &x[2], heads, false),
            move |x| attention(&x[0], &x[1], &x[2], heads),
        ));
    }
    for (batch, channels, side, groups) in [(24, 64, 16, 32), (24, 128, 8, 32), (1, 320, 64, 32)] {
        all.push(case(
            format!("group norm + silu {batch} x {channels} x {side} x {side}"),
            &[&[batch, channels, side, side], &[channels], &[channels]],
            0.0,
            move |x| nn::group_norm(&x[0], &x[1], &x[2], groups, 1e-5, true),
            move |x| group_norm(&x[0], &x[1], &x[2], groups),
        ));
    }
    for (rows, features) in [(24 * 256, 64), (24 * 64, 128), (4096, 320)] {
        all.push(case(
            format!("layer norm {rows} x {features}"),
            &[&[rows, features], &[features], &[features]],
            0.0,
            |x| nn::layer_norm(&x[0], &x[1], &x[2], 1e-5),
            |x| {
                let centred = x[0].broadcast_sub(&x[0].mean_keepdim(D::Minus1)?)?;
                let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
                centred.broadcast_div(&deviation)?.broadcast_mul(&x[1])?.broadcast_add(&x[2])
            },
        ));
    }
    let shape: &[usize] = &[24, 256, 256];
    all.push(case("silu 24 x 256 x 256".into(), &[shape], 0.0, |x| nn::silu(&x[0]), |x| x[0].silu()));
    all.push(case("gelu 24 x 256 x 256".into(), &[shape], 0.0, |x| nn::gelu(&x[0]), |x| x[0].gelu_erf()));
    all.push(case(
        "quick gelu 24 x 256 x 256".into(),
        &[shape],
        0.0,
        |x| nn::quick_gelu(&x[0]),
        |x| &x[0] / ((&x[0] * -1.702)?.exp()? + 1.0)?,
    ));
    all.push(case(
        "geglu 24 x 256 x (2 x 256)".into(),
        &[&[24, 256, 512]],
        0.0,
        |x| nn::geglu(&x[0]),
        |x| x[0].narrow(D::Minus1, 0, 256)? * x[0].narrow(D::Minus1, 256, 256)?.gelu_erf()?,
    ));
    all
}

fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, s, width) = q.dims3()?;
    let (t, d) = (k.dim(1)?, width / heads);
    let split = |x: &Tensor, len: usize| x.reshape((batch, len, heads, d))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, s)?, split(k, t)?, split(v, t)?);
    let scores = (q.matmul(&k.t()?)? * (1.0 / (d as f64).sqrt()))?;
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probs = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    probs.matmul(&v)?.transpose(1, 2)?.reshape((batch, s, width))
}

fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);

    let grouped = x.reshape((batch, groups, x.elem_count() / (batch * groups)))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)?.reshape((batch, channels, ()))?;
    let y = y.broadcast_mul(&weight.reshape((1, channels, 1))?)?.broadcast_add(&bias.reshape((1, channels, 1))?)?;
    y.reshape(x.shape())?.silu()
}
