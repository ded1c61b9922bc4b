//! In place of `amx`, where there is none.

use super::Onto;
use crate::nn::kernels::instructions::Instructions;
use crate::nn::kernels::matmul::View;

/// See `amx`: nowhere.
pub fn suits(_: Instructions, _: usize) -> bool {
    false
}

/// Never called.
pub fn blocks(m: usize, n: usize) -> (usize, usize) {
    (m, n)
}

/// Of which there are none.
#[derive(Debug)]
pub struct Right(());

impl Right {
    pub fn new(_: usize, _: usize, _: View<'_>) -> Self {
        unreachable!("nothing suits")
    }

    /// # Safety
    /// None is needed.
    pub unsafe fn multiply(&self, _: (usize, usize, usize), _: View<'_>, _: *mut f32, _: usize, _: Onto<'_>, _: f32) {
        unreachable!("nothing suits")
    }

    /// # Safety
    /// None is needed.
    pub unsafe fn multiply_each<'a>(
        _: &[&'a Self],
        _: (usize, usize, usize),
        _: impl Fn(usize) -> (View<'a>, *mut f32),
        _: usize,
        _: Onto<'a>,
        _: f32,
    ) {
        unreachable!("nothing suits")
    }
}

/// Of which there are none.
#[derive(Debug)]
pub struct Left(());

impl Left {
    pub fn new(_: usize, _: usize, _: View<'_>) -> Self {
        unreachable!("nothing suits")
    }

    /// # Safety
    /// None is needed.
    pub unsafe fn multiply_each<'a>(
        &'a self,
        _: usize,
        _: usize,
        _: impl Fn(usize) -> (View<'a>, *mut f32),
        _: usize,
        _: Onto<'a>,
    ) {
        unreachable!("nothing suits")
    }
}

/// # Safety
/// None is needed.
pub unsafe fn product(_: (usize, usize, usize), _: *mut f32, _: usize, _: Onto<'_>, _: View<'_>, _: View<'_>, _: f32) {
    unreachable!("nothing suits")
}

/// A row of a tile.
#[derive(Clone, Copy)]
pub struct Line(());

impl Line {
    pub fn new(_: [u32; 16]) -> Self {
        unreachable!("nothing suits")
    }
}

/// Tile registers.
pub struct Tiles(());

impl Tiles {
    pub fn begin() -> Self {
        unreachable!("nothing suits")
    }
}

/// A rounded operand.
#[derive(Clone, Copy)]
pub struct Rounded<'a>(std::marker::PhantomData<&'a Line>);

impl<'a> Rounded<'a> {
    pub fn rows(_: View<'_>, _: (usize, usize), _: &'a mut Vec<Line>) -> Self {
        unreachable!("nothing suits")
    }

    pub fn columns(_: View<'_>, _: (usize, usize), _: &'a mut Vec<Line>) -> Self {
        unreachable!("nothing suits")
    }

    pub fn columns_of(_: (usize, usize), _: &'a mut Vec<Line>, _: impl FnOnce(&mut [Line])) -> Self {
        unreachable!("nothing suits")
    }

    /// # Safety
    /// None is needed.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn times(self, _: &Tiles, _: Self, _: (usize, usize), _: *mut f32, _: usize, _: Onto<'_>, _: f32) {
        unreachable!("nothing suits")
    }
}

/// See `amx`.
pub const CHANNELS: usize = 32;
pub const SQUARE: usize = 32;

/// Four tiles.
pub struct Sums(pub [f32; SQUARE * SQUARE]);

impl Default for Sums {
    fn default() -> Self {
        Self([0.0; SQUARE * SQUARE])
    }
}

/// A kernel's weights.
pub struct Weights(());

impl Default for Weights {
    fn default() -> Self {
        unreachable!("nothing suits")
    }
}

impl Weights {
    pub fn begin(&mut self, _: usize, _: usize) {
        unreachable!("nothing suits")
    }

    pub fn set_output(&mut self, _: usize, _: &[u16]) -> usize {
        unreachable!("nothing suits")
    }

    pub fn set(&mut self, _: usize, _: usize, _: [u16; 9]) {
        unreachable!("nothing suits")
    }

    pub fn sum(&self, _: &Tiles, _: &[u32], _: (usize, usize), _: &mut Sums) {
        unreachable!("nothing suits")
    }
}
