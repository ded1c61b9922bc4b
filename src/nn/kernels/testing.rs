//! Compares a fused `f32` op with the composite that the same function uses for `f64`.

use super::instructions::Instructions;
use crate::Result;
use candle_core::{DType, Device, Tensor, Var};

/// Reproducible values in about [-2, 2].
pub fn values(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678_9ABC_DEF1);
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

/// A tensor of [`values`], rounded to `f32`, of type `dtype`.
pub fn tensor(shape: &[usize], seed: u64, dtype: DType) -> Tensor {
    let values = values(shape.iter().product(), seed);
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(DType::F32).unwrap().to_dtype(dtype).unwrap()
}

type Op<'a> = &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync);

/// The result, and the gradient of a weighted sum of it for each operand.
fn run(op: Op<'_>, shapes: &[&[usize]], tracked: usize, dtype: DType) -> (Tensor, Vec<Option<Tensor>>) {
    let operand = |(i, shape): (usize, &&[usize])| {
        let plain = tensor(shape, i as u64 + 1, dtype);
        if tracked >> i & 1 == 1 { Var::from_tensor(&plain).unwrap().into_inner() } else { plain }
    };
    let operands: Vec<Tensor> = shapes.iter().enumerate().map(operand).collect();
    let y = op(&operands).unwrap();
    let loss = (&y * tensor(y.dims(), 77, dtype)).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    (y, operands.iter().map(|x| grads.get(x).cloned()).collect())
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (flat(got), flat(expected));
    let size = expected.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
    for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
        assert!((g - e).abs() <= tolerance * size, "{what}: element {i} is {g}, expected {e} (largest {size})");
    }
}

/// For every choice of tracked operands: result and gradients as in `f64` to `tolerance` (relative to the largest
/// element), none for an untracked operand, and the same bits on one thread, two and five.
pub fn compare(name: &str, shapes: &[&[usize]], tolerance: f64, op: Op<'_>) {
    let all = (1usize << shapes.len()) - 1;
    let (exact, exact_grads) = run(op, shapes, all, DType::F64);
    for tracked in 0..=all {
        let results: Vec<_> = [1, 2, 5]
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| run(op, shapes, tracked, DType::F32))
            })
            .into();
        let (y, grads) = &results[0];
        assert_close(&format!("{name} {shapes:?}"), y, &exact, tolerance);
        for (i, (grad, exact)) in grads.iter().zip(&exact_grads).enumerate() {
            let what = format!("{name} {shapes:?}: gradient of operand {i}, tracked {tracked:b}");
            assert_eq!(grad.is_some(), tracked >> i & 1 == 1, "{what} exists");
            if let (Some(grad), Some(exact)) = (grad, exact) {
                assert_close(&what, grad, exact, tolerance);
            }
        }
        for (other, other_grads) in &results[1..] {
            assert_eq!(bits(y), bits(other), "{name} depends on the number of threads");
            for (a, b) in grads.iter().flatten().zip(other_grads.iter().flatten()) {
                assert_eq!(bits(a), bits(b), "{name}: a gradient depends on the number of threads");
            }
        }
    }
}

/// With a frozen weight in `bf16` or `f16` (operand 1), the result and the other operands' gradients are bit for bit those with the
/// same numbers in `f32`; where tiles of `bf16` are multiplied, the result is that of operands rounded to `bf16`, and the gradients those of
/// such a result's.
pub fn compare_halved(name: &str, shapes: &[&[usize]], op: Op<'_>) {
    compare_kept_as(DType::BF16, name, shapes, op);
    compare_kept_as(DType::F16, name, shapes, op);
}

fn compare_kept_as(dtype: DType, name: &str, shapes: &[&[usize]], op: Op<'_>) {
    let brief = dtype == DType::BF16 && Instructions::used() == Instructions::Amx;
    let halved = |x: &[Tensor]| -> Result<Vec<Tensor>> {
        let mut x = x.to_vec();
        if brief {
            // the gradient passes by
            let rounded = x[0].to_dtype(dtype)?.to_dtype(DType::F32)?;
            x[0] = (&x[0] + (rounded - &x[0])?.detach())?;
        }
        // some of them below f16's normal range
        let small =
            Tensor::arange(0, x[1].elem_count() as u32, &Device::Cpu)?.to_dtype(DType::F32)?.sin()?.powf(8.0)?;
        x[1] = (&x[1] * small.reshape(x[1].shape())?)?.to_dtype(dtype)?;
        Ok(x)
    };
    let tracked = (1usize << shapes.len()) - 1 - 2;
    let (y, grads) = run(&|x| op(&halved(x)?), shapes, tracked, DType::F32);
    let plain = |x: &[Tensor]| -> Result<Vec<Tensor>> {
        let mut x = halved(x)?;
        x[1] = x[1].to_dtype(DType::F32)?;
        Ok(x)
    };
    let (expected, expected_grads) = run(&|x| op(&plain(x)?), shapes, tracked, DType::F32);
    if brief {
        assert_close(&format!("{name} {shapes:?} in {dtype:?}"), &y, &expected, 3e-6);
        for (grad, expected) in grads.iter().zip(&expected_grads) {
            assert_eq!(grad.is_some(), expected.is_some(), "{name} {shapes:?} in {dtype:?}");
            if let (Some(grad), Some(expected)) = (grad, expected) {
                assert_close(&format!("{name} {shapes:?} in {dtype:?}: a gradient"), grad, expected, 1e-2);
            }
        }
        return;
    }
    assert_eq!(bits(&y), bits(&expected), "{name} {shapes:?} in {dtype:?}");
    for (grad, expected) in grads.iter().zip(&expected_grads) {
        assert_eq!(grad.as_ref().map(bits), expected.as_ref().map(bits), "{name} {shapes:?} in {dtype:?}: a gradient");
    }
}

fn bits(x: &Tensor) -> Vec<u32> {
    let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    x.into_iter().map(f32::to_bits).collect()
}

/// Every test of the layers and kernels again, in a process each, with every lesser set of vector instructions.
#[test]
fn every_op_with_lesser_instructions() {
    for set in Instructions::ALL.into_iter().filter(|set| *set < Instructions::used()) {
        let mut tests = std::process::Command::new(std::env::current_exe().expect("this program"));
        let tests = tests.args(["nn::", "--skip", "lesser_instructions"]).env(Instructions::LIMIT, set.name());
        let output = tests.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !text.contains(" 0 passed"), "with {set:?}:\n{text}");
    }
}
