//! How the repair went.

use super::page::Section;
use super::plots::{Curve, curve, figure};
use super::words::{count, thousands};
use crate::erase::StepRecord;
use crate::erase::settings::{ForgetTerm, Settings};
use maud::html;

pub fn section(losses: &[StepRecord], settings: &Settings) -> Section {
    let values = |f: fn(&StepRecord) -> f32| losses.iter().map(|step| f64::from(f(step))).collect::<Vec<_>>();
    let (retain, forget) = (values(|s| s.retain), values(|s| s.forget));
    let marked: Vec<usize> = losses.iter().enumerate().filter(|(_, s)| s.projected).map(|(i, _)| i).collect();
    let plot = |name: &str, values: &[f64], class| curve(&Curve { name: name.into(), values, marked: &marked, class });
    let forget_means = match settings.forget_term {
        ForgetTerm::Anchor => {
            "The forget term is the distance between what the model predicts for a prompt of the concept and what is predicted for \
             its anchor, the same prompt with something else in the concept's place: it should fall."
        }
        ForgetTerm::Ascent => {
            "The forget term is the denoising loss on the concept, which is driven up: it should rise."
        }
    };
    let projection = if settings.projection.memories == 0 {
        "Gradients were not projected.".to_string()
    } else {
        format!(
            "A tick below a curve marks a step whose gradient would have learnt the concept again and was projected: {} of {}.",
            thousands(marked.len()),
            count(losses.len(), "step")
        )
    };
    let body = html! {
        p { "After trimming, the model is trained on what must stay. The retain term measures how far it is from that and should "
            "end low. " (forget_means) " " (projection) }
        @if losses.is_empty() {
            p.notice { "There were no repair steps." }
        } @else {
            div.two {
                (figure(&plot("retain term", &retain, "before"), &html! { "Retain term (mean squared error). Pale: each step; strong: moving mean." }))
                (figure(&plot("forget term", &forget, "after"), &html! { "Forget term, before its weight λ = " (settings.lambda) "." }))
            }
        }
    };
    Section { id: "repair", title: "How the repair went".into(), nav: "Repair", body }
}
