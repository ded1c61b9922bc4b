//! The one noise source: PyTorch's CPU generator, number for number.
//!
//! Engine MT19937 (Matsumoto & Nishimura 1998), of which only the seed's low 32 bits enter. `torch.randn` draws 16 or more
//! floats by Box-Muller in blocks of 16 (`normal_fill` in ATen's `DistributionTemplates.h`), fewer one by one in f64.

use crate::Result;
use candle_core::{Device, Shape, Tensor};
use rayon::prelude::*;

const N: usize = 624;
const M: usize = 397;
/// Numbers that a task makes normal: a multiple of 16.
const BLOCK: usize = 1 << 14;

/// A seeded stream of random numbers.
#[derive(Clone)]
pub struct Generator {
    state: [u32; N],
    next: usize,
    /// The second number of the last f64 Box-Muller pair.
    cached: Option<f64>,
}

impl Generator {
    /// As `torch.Generator("cpu").manual_seed(seed)`.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N, cached: None }
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    fn random(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn random64(&mut self) -> u64 {
        let high = u64::from(self.random());
        high << 32 | u64::from(self.random())
    }

    /// Uniform in `[0, 1)`, 24 bits, as `torch.rand` draws a float.
    pub fn uniform(&mut self) -> f32 {
        (self.random() & 0xff_ffff) as f32 / (1u32 << 24) as f32
    }

    fn uniform64(&mut self) -> f64 {
        (self.random64() & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn normal64(&mut self) -> f64 {
        if let Some(second) = self.cached.take() {
            return second;
        }
        let (u1, u2) = (self.uniform64(), self.uniform64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (2.0 * std::f64::consts::PI * u1).sin_cos();
        self.cached = Some(radius * sin);
        radius * cos
    }

    /// As `torch.randn(n)`.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal64() as f32).collect();
        }
        let mut values: Vec<f32> = (0..n).map(|_| self.uniform()).collect();
        values.par_chunks_mut(BLOCK).for_each(|values| values.chunks_exact_mut(16).for_each(box_muller));
        if !n.is_multiple_of(16) {
            let tail = &mut values[n - 16..];
            for value in tail.iter_mut() {
                *value = self.uniform();
            }
            box_muller(tail);
        }
        values
    }

    /// As `torch.randn(shape)`.
    pub fn randn_tensor(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        Ok(Tensor::from_vec(self.randn(shape.elem_count()), shape, device)?)
    }

    /// Uniform in `0..n` (ours, not torch's): the high half of a 64-bit product. `n` of 0 gives 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.random64()) * n as u128) >> 64) as usize
    }

    /// Fisher-Yates (ours, not torch's).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// 16 uniforms to 16 normals: j and j + 8 make a pair.
fn box_muller(values: &mut [f32]) {
    for j in 0..8 {
        let (u1, u2) = (1.0 - values[j], values[j + 8]);
        let radius = (-2.0 * u1.ln()).sqrt();
        let (sin, cos) = (2.0 * std::f32::consts::PI * u2).sin_cos();
        values[j] = radius * cos;
        values[j + 8] = radius * sin;
    }
}
