//! The graph of a pass that this program keeps itself, with candle's own ops in its midst.

use super::check::{Check, Found, error, larger};
use crate::diffusion::Generator;
use crate::nn::{add, geglu, linear, record, silu};
use crate::{Error, Result};
use candle_core::{Device, Tensor, Var};

/// All of them.
pub(super) fn checks() -> Vec<Check> {
    vec![Check::new("recorded pass", "6x8, 20x8, 20", 1e-4, check)]
}

/// A result that several ops read, and the gradients of what it was made of.
fn pass(device: &Device) -> Result<Vec<Tensor>> {
    let var = |seed: u64, shape: &[usize]| -> Result<Var> {
        let values = Generator::new(seed).randn_tensor(shape, &Device::Cpu)?;
        Ok(Var::from_tensor(&values.to_device(device)?)?)
    };
    let vars = [var(1, &[6, 8])?, var(2, &[20, 8])?, var(3, &[20])?];
    let (y, record) = record(|| {
        let h = linear(&vars[0], &vars[1], Some(vars[2].as_tensor()))?;
        let h = (h * 0.5)?.reshape((3, 2, 20))?;
        geglu(&add(&silu(&h)?, &h)?)
    })?;
    let mut found = vec![y.detach()];
    let loss = y.sqr()?.sum_all()?;
    drop(y);
    let mut store = loss.backward()?;
    drop(loss);
    record.backward(&mut store)?;
    for var in &vars {
        let gradient = store.remove(var.as_tensor());
        found.push(gradient.ok_or_else(|| Error::Numeric("a leaf got no gradient".into()))?);
    }
    Ok(found)
}

fn check(device: &Device) -> Result<Found> {
    let (exact, got) = (pass(&Device::Cpu)?, pass(device)?);
    let mut found = Found::default();
    for (i, (got, exact)) in got.iter().zip(&exact).enumerate() {
        larger(if i == 0 { &mut found.forward } else { &mut found.backward }, error(got, exact)?);
    }
    Ok(found)
}
