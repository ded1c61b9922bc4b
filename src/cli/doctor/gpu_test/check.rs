//! One check: the same on the CPU and on the device, and how far the two are apart.

use crate::diffusion::Generator;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// A timed piece is run so many times, or for so long, whichever comes first.
const RUNS: usize = 5;
const TIME: Duration = Duration::from_millis(100);

/// What a check found, as it is printed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    pub name: String,
    pub shape: String,
    /// The largest error of what is computed, relative to its largest element.
    pub forward: Option<f64>,
    /// The same for gradients.
    pub backward: Option<f64>,
    pub tolerance: f64,
    /// Median time on the device.
    pub forward_ms: Option<f64>,
    /// Of the pass forward and backward.
    pub both_ms: Option<f64>,
    pub ok: bool,
    /// What is wrong.
    pub problem: Option<String>,
}

/// What a check measures; a check that cannot be completed is an error instead.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub forward: Option<f64>,
    pub backward: Option<f64>,
    pub forward_ms: Option<f64>,
    pub both_ms: Option<f64>,
    /// What is wrong besides errors that are too large.
    pub problems: Vec<String>,
}

type Run = Box<dyn Fn(&Device) -> Result<Found>>;

/// Something that must be the same on the device as on the CPU.
pub(super) struct Check {
    pub name: String,
    pub shape: String,
    pub tolerance: f64,
    run: Run,
}

impl Check {
    pub fn new(
        name: impl Into<String>,
        shape: impl Into<String>,
        tolerance: f64,
        run: impl Fn(&Device) -> Result<Found> + 'static,
    ) -> Self {
        Self { name: name.into(), shape: shape.into(), tolerance, run: Box::new(run) }
    }

    /// Runs it; whatever goes wrong is in the row.
    pub fn row(&self, device: &Device) -> Row {
        let found = catch_unwind(AssertUnwindSafe(|| (self.run)(device)));
        let mut row = Row {
            name: self.name.clone(),
            shape: self.shape.clone(),
            forward: None,
            backward: None,
            tolerance: self.tolerance,
            forward_ms: None,
            both_ms: None,
            ok: false,
            problem: None,
        };
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Row { problem: Some(error.to_string()), ..row },
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
                return Row { problem: Some(format!("panicked: {text}")), ..row };
            }
        };
        let mut problems = found.problems;
        if found.forward.is_none() && found.backward.is_none() {
            problems.push("nothing was compared".into());
        }
        for (what, error) in [("result", found.forward), ("gradients", found.backward)] {
            match error {
                Some(error) if !error.is_finite() => {
                    problems.push(format!("the {what} cannot be compared: NaN, infinite or all zero"))
                }
                Some(error) if error > self.tolerance => problems.push(format!("the {what} differ by {error:.1e}")),
                _ => {}
            }
        }
        row.ok = problems.is_empty();
        row.problem = (!row.ok).then(|| problems.join("; "));
        (row.forward, row.backward) =
            (found.forward.filter(|e| e.is_finite()), found.backward.filter(|e| e.is_finite()));
        (row.forward_ms, row.both_ms) = (found.forward_ms, found.both_ms);
        row
    }
}

/// An operand of an op: normally distributed numbers, no two checks the same.
#[derive(Debug, Clone)]
pub(super) struct Operand {
    shape: Vec<usize>,
    scale: f64,
    shift: f64,
    /// The type of a frozen weight that is kept in sixteen bits.
    kept: Option<DType>,
    rounded: bool,
}

/// An operand of this shape.
pub(super) fn of<const N: usize>(shape: [usize; N]) -> Operand {
    Operand::of(&shape)
}

impl Operand {
    /// An operand of this shape.
    pub fn of(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), scale: 1.0, shift: 0.0, kept: None, rounded: false }
    }

    /// Kept in `bf16`, and frozen.
    pub fn halved(self) -> Self {
        self.kept_as(DType::BF16)
    }

    /// Kept in this type, and frozen.
    pub fn kept_as(mut self, dtype: DType) -> Self {
        self.kept = Some(dtype);
        self
    }

    /// Of values that `bf16` holds, in `f32`.
    pub fn rounded(mut self) -> Self {
        self.rounded = true;
        self
    }

    /// Of this standard deviation.
    pub fn scaled(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// Around this mean.
    pub fn shifted(mut self, shift: f64) -> Self {
        self.shift = shift;
        self
    }

    fn tensor(&self, seed: u64) -> Result<Tensor> {
        let values = Generator::new(seed).randn_tensor(self.shape.as_slice(), &Device::Cpu)?;
        let values = values.affine(self.scale, self.shift)?;
        let values = if self.rounded { values.to_dtype(DType::BF16)?.to_dtype(DType::F32)? } else { values };
        Ok(values.to_dtype(self.kept.unwrap_or(DType::F32))?)
    }
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sizes: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        f.write_str(&sizes.join("x"))?;
        self.kept.map_or(Ok(()), |dtype| write!(f, " {}", dtype.as_str()))
    }
}

/// An op of its operands.
pub(super) type Op = dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The check of an op, forward and backward.
pub(super) fn op(
    name: &str,
    operands: &[Operand],
    tolerance: f64,
    f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
) -> Check {
    let shape = operands.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let seed = u64::from(crc32fast::hash(format!("{name} {shape}").as_bytes()));
    let operands = operands.to_vec();
    Check::new(name, shape, tolerance, move |device| compare(&operands, seed, device, &f, &f))
}

/// A result and the gradients of a weighted sum of it, for each operand that has one.
struct Pass {
    y: Tensor,
    gradients: Vec<Option<Tensor>>,
}

/// Runs an op with those operands tracked that `tracked` has a bit for.
fn pass(f: &Op, operands: &[Tensor], tracked: usize, weights: Option<&Tensor>) -> Result<Pass> {
    let operand = |(i, x): (usize, &Tensor)| -> Result<Tensor> {
        Ok(if tracked >> i & 1 == 1 { Var::from_tensor(x)?.into_inner() } else { x.clone() })
    };
    let operands = operands.iter().enumerate().map(operand).collect::<Result<Vec<_>>>()?;
    let y = f(&operands)?;
    let Some(weights) = weights else { return Ok(Pass { y, gradients: Vec::new() }) };
    let gradients = (&y * weights)?.sum_all()?.backward()?;
    let gradients = operands.iter().map(|x| gradients.get(x).cloned()).collect();
    Ok(Pass { y, gradients })
}

/// Compares `theirs` on the device with `ours` on the CPU: with every operand tracked that can be, and with the first alone.
pub(super) fn compare(operands: &[Operand], seed: u64, device: &Device, ours: &Op, theirs: &Op) -> Result<Found> {
    let host = operands.iter().zip(1..).map(|(x, i)| x.tensor(seed ^ (i << 28))).collect::<Result<Vec<_>>>()?;
    let all = operands.iter().enumerate().filter(|(_, x)| x.kept.is_none()).fold(0, |bits, (i, _)| bits | 1 << i);
    let shape = pass(ours, &host, 0, None)?.y;
    let weights = Operand::of(shape.dims()).tensor(seed)?;
    let exact = pass(ours, &host, all, Some(&weights))?;

    let there = host.iter().map(|x| Ok(x.to_device(device)?)).collect::<Result<Vec<_>>>()?;
    let weights = weights.to_device(device)?;
    let mut found = Found::default();
    let mut first: Option<Pass> = None;
    for tracked in if all == 1 { vec![1] } else { vec![all, 1] } {
        let got = pass(theirs, &there, tracked, Some(&weights))?;
        larger(&mut found.forward, error(&got.y, &exact.y)?);
        for (i, (gradient, exact)) in got.gradients.iter().zip(&exact.gradients).enumerate() {
            match (gradient, exact, tracked >> i & 1 == 1) {
                (Some(gradient), Some(exact), true) => larger(&mut found.backward, error(gradient, exact)?),
                (None, _, true) => found.problems.push(format!("operand {i} is tracked but gets no gradient")),
                (Some(_), _, false) => found.problems.push(format!("operand {i} is frozen but gets a gradient")),
                _ => {}
            }
        }
        first.get_or_insert(got);
    }
    let again = pass(theirs, &there, all, Some(&weights))?;
    if let Some(first) = first {
        let pairs = first.gradients.iter().flatten().zip(again.gradients.iter().flatten());
        for (a, b) in pairs.chain([(&first.y, &again.y)]) {
            if !same_bytes(a, b)? {
                found.problems.push("the same call twice gives other bytes".into());
                break;
            }
        }
    }
    found.forward_ms = Some(time(device, || pass(theirs, &there, 0, None).map(drop))?);
    found.both_ms = Some(time(device, || pass(theirs, &there, all, Some(&weights)).map(drop))?);
    Ok(found)
}

/// Keeps the larger of two errors; NaN is larger than any.
pub(super) fn larger(so_far: &mut Option<f64>, error: f64) {
    *so_far = Some(match *so_far {
        Some(other) if other.is_nan() || other >= error => other,
        _ => error,
    });
}

/// The largest difference relative to the largest element of `exact`; NaN if either has one or `exact` is all zero.
///
/// # Errors
/// If the shapes differ.
pub(super) fn error(got: &Tensor, exact: &Tensor) -> Result<f64> {
    if got.dims() != exact.dims() {
        return Err(Error::Numeric(format!("the shape is {:?}, not {:?}", got.dims(), exact.dims())));
    }
    let (got, exact) = (flat(got)?, flat(exact)?);
    let (mut off, mut size) = (0f64, 0f64);
    for (g, e) in got.iter().zip(&exact) {
        let (g, e) = (f64::from(*g), f64::from(*e));
        if !g.is_finite() || !e.is_finite() {
            return Ok(f64::NAN);
        }
        off = off.max((g - e).abs());
        size = size.max(e.abs());
    }
    Ok(if size > 0.0 { off / size } else { f64::NAN })
}

/// Whether two tensors have the same bits.
pub(super) fn same_bytes(a: &Tensor, b: &Tensor) -> Result<bool> {
    let (a, b) = (flat(a)?, flat(b)?);
    Ok(a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()))
}

fn flat(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_device(&Device::Cpu)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

/// The median of some runs in milliseconds, each until the device has done it.
pub(super) fn time(device: &Device, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let (began, mut times) = (Instant::now(), Vec::with_capacity(RUNS));
    device.synchronize()?;
    while times.is_empty() || (times.len() < RUNS && began.elapsed() < TIME) {
        let run = Instant::now();
        f()?;
        device.synchronize()?;
        times.push(run.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(x: &[Tensor]) -> Result<Tensor> {
        Ok((x[0].sqr()? * &x[1])?)
    }

    /// The row of `theirs` where [`right`] is right.
    fn row(theirs: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Row {
        let operands = [of([3, 5]), of([3, 5])];
        let check = Check::new("x", "3x5", 1e-4, move |device| compare(&operands, 7, device, &right, &theirs));
        check.row(&Device::Cpu)
    }

    fn problem(theirs: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> String {
        let row = row(theirs);
        assert!(!row.ok, "{row:?}");
        row.problem.unwrap()
    }

    #[test]
    fn what_is_right_passes() {
        let one = Check::new("x", "4", 1e-6, |device| {
            compare(&[of([4])], 7, device, &|x| Ok(x[0].sqr()?), &|x| Ok(x[0].sqr()?))
        });
        let row = one.row(&Device::Cpu);
        assert!(row.ok && row.forward == Some(0.0) && row.backward == Some(0.0), "{row:?}");
        assert!(row.forward_ms.unwrap() > 0.0 && row.both_ms.unwrap() > 0.0);
    }

    #[test]
    fn what_is_wrong_fails_and_is_said() {
        assert!(problem(|x| Ok((right(x)? * 1.001)?)).contains("the result differ by 1.0e-3"));
        let half = |x: &[Tensor]| Ok(((&x[0] * x[0].detach())? * &x[1])?); // the value is right, its slope is half
        assert!(problem(half).contains("the gradients differ by 5.0e-1"));
        let frozen = problem(right); // candle's own product has a gradient for both, tracked or not
        assert_eq!(frozen, "operand 1 is frozen but gets a gradient");
        assert!(problem(|x| Ok((x[0].sqr()? * x[1].detach())?)).contains("operand 1 is tracked but gets no gradient"));
        assert!(problem(|x| Ok((right(x)? + f64::NAN)?)).contains("the result cannot be compared"));
        assert!(problem(|x| Ok(((right(x)? * 0.0)? / 0.0)?)).contains("the result cannot be compared"));
        assert!(problem(|x| Ok(right(x)?.t()?)).contains("shape"));
        assert!(problem(|_| Err(Error::usage("no such kernel"))).contains("no such kernel"));
        assert_eq!(problem(|_| panic!("out of {}", "bounds")), "panicked: out of bounds");
        let count = std::cell::Cell::new(0.0);
        let drifting = move |x: &[Tensor]| {
            count.set(count.get() + 1e-5);
            Ok((right(x)? * (1.0 + count.get()))?)
        };
        assert!(problem(drifting).contains("the same call twice gives other bytes"));
    }

    #[test]
    fn errors_are_relative_to_the_largest_element() {
        let tensor = |x: [f32; 3]| Tensor::new(&x, &Device::Cpu).unwrap();
        let exact = tensor([0.0, -4.0, 2.0]);
        assert_eq!(error(&tensor([1.0, -4.0, 2.0]), &exact).unwrap(), 0.25);
        assert!(error(&tensor([f32::NAN, -4.0, 2.0]), &exact).unwrap().is_nan());
        assert!(error(&tensor([0.0, f32::INFINITY, 2.0]), &exact).unwrap().is_nan());
        assert!(error(&tensor([0.0; 3]), &tensor([0.0; 3])).unwrap().is_nan(), "nothing to compare with");
        let mut worst = None;
        for (next, kept) in [(1.0, 1.0), (0.5, 1.0), (2.0, 2.0)] {
            larger(&mut worst, next);
            assert_eq!(worst, Some(kept));
        }
        larger(&mut worst, f64::NAN);
        larger(&mut worst, 3.0);
        assert!(worst.unwrap().is_nan());
    }
}
