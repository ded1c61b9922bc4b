//! UA, IRA and CRA as UnlearnCanvas (Zhang et al., NeurIPS 2024) defines them.

use super::Metric;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What UA is.
pub const UA_DEFINITION: &str = "\
    unlearning accuracy (UnlearnCanvas, arXiv 2402.11846): 100 * (1 - accuracy of the classifier on pictures whose \
    prompt names the target). High is good";
/// What IRA is.
pub const IRA_DEFINITION: &str = "\
    in-domain retain accuracy (UnlearnCanvas): 100 * mean over the other labels of the target's domain of the \
    classifier's accuracy on pictures whose prompt names them. High is good";
/// What CRA is.
pub const CRA_DEFINITION: &str = "\
    cross-domain retain accuracy (UnlearnCanvas): 100 * mean over the labels of other domains of the classifier's \
    accuracy on pictures whose prompt names them, whether or not it names the target too (as its accuracy.py \
    counts). High is good";

/// A label that a picture's prompt names, and whether the classifier finds it. A picture has as many of these as its
/// prompt names labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Stated<'a> {
    /// `DOMAIN: NAME`, such as `style: striped`; a label without a colon is of a domain of its own kind.
    pub label: &'a str,
    /// Whether the classifier names it.
    pub right: bool,
}

/// The three numbers; `None` where no prompt names such a label.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnlearnCanvas {
    /// See [`UA_DEFINITION`].
    pub ua: Option<Metric>,
    /// See [`IRA_DEFINITION`].
    pub ira: Option<Metric>,
    /// See [`CRA_DEFINITION`].
    pub cra: Option<Metric>,
}

/// The three numbers of a model from which `targets` (labels of one domain) were erased.
///
/// # Errors
/// If there is no target, or they are of several domains.
pub fn unlearn_canvas(targets: &[&str], answers: &[Stated<'_>]) -> Result<UnlearnCanvas> {
    let domain = |label: &str| label.split_once(':').map_or(String::new(), |(domain, _)| domain.trim().to_string());
    let domains: BTreeSet<String> = targets.iter().map(|label| domain(label)).collect();
    let Some(own) = domains.first().filter(|_| domains.len() == 1) else {
        return Err(Error::usage("UA, IRA and CRA need targets of one domain, such as style: striped"));
    };
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for answer in answers {
        let (right, all) = counts.entry(answer.label).or_default();
        *right += usize::from(answer.right);
        *all += 1;
    }
    let accuracy = |of: &dyn Fn(&str) -> bool| {
        let chosen: Vec<&(usize, usize)> =
            counts.iter().filter(|(label, _)| of(label)).map(|(_, count)| count).collect();
        let mean = chosen.iter().map(|(right, all)| *right as f64 / *all as f64).sum::<f64>() / chosen.len() as f64;
        (!chosen.is_empty()).then(|| (mean, chosen.iter().map(|(_, all)| all).sum::<usize>()))
    };
    let metric = |name, definition, value: f64, n| Metric { name, definition, value: 100.0 * value, pictures: vec![n] };
    let ua = accuracy(&|label| targets.contains(&label));
    let ira = accuracy(&|label| !targets.contains(&label) && domain(label) == *own);
    let cra = accuracy(&|label| domain(label) != *own);
    Ok(UnlearnCanvas {
        ua: ua.map(|(accuracy, n)| metric("UA", UA_DEFINITION, 1.0 - accuracy, n)),
        ira: ira.map(|(accuracy, n)| metric("IRA", IRA_DEFINITION, accuracy, n)),
        cra: cra.map(|(accuracy, n)| metric("CRA", CRA_DEFINITION, accuracy, n)),
    })
}
