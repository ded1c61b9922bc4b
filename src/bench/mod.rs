//! Grids of settings, compared on concepts and seeds: what a setting of the method is worth.

mod grid;
mod plot;
mod results;
mod table;

pub use grid::{GRIDS, Grid, Variant};
pub use plot::plot;
pub use results::{Outcome, Results};
pub use table::{runs, table};
