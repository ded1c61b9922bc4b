//! Figures as inline SVG. Positions across are percentages and letters have a fixed size, so that a figure is as readable on
//! a phone as on a wall. Colours come from the page's style.

mod axis;
mod curves;
mod histogram;
mod intervals;
mod unet;

pub use axis::{Axis, ticks};
pub use curves::{Curve, curve};
pub use histogram::{Mark, histogram};
pub use intervals::{Interval, intervals};
pub use unet::{Block, height, unet};

use maud::{Markup, html};

/// A figure with its caption.
pub fn figure(svg: &Markup, caption: &Markup) -> Markup {
    html! { figure.plot { (svg) figcaption { (caption) } } }
}
