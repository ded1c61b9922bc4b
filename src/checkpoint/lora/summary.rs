//! What a LoRA holds of an edit, layer by layer and in all.

use serde::Serialize;

/// One layer of a LoRA.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layer {
    /// The changed parameter, by diffusers' name.
    pub parameter: String,
    /// What the LoRA calls its layer.
    pub name: String,
    /// Pairs of vectors.
    pub rank: usize,
    /// The Frobenius norm of the change (times the strength).
    pub change: f64,
    /// What of it is lost: `||change - product of the factors as written|| / ||change||`.
    pub residual: f64,
}

/// A changed parameter that no LoRA can hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NotHeld {
    /// Its name.
    pub parameter: String,
    /// The norm of its change (times the strength).
    pub change: f64,
}

/// What a LoRA holds of an edit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Its layers, by the names of their parameters.
    pub layers: Vec<Layer>,
    /// Changed parameters that are left out: biases, norms.
    pub not_held: Vec<NotHeld>,
    /// What of the whole change is lost, with what is not held: `||lost|| / ||change||`.
    pub residual: f64,
    /// What each layer's product is multiplied by, times its rank.
    pub alpha: usize,
    /// Numbers in the file.
    pub parameters: usize,
}

impl Summary {
    /// The residual of `layers` and `not_held` together; `left` has the sums of squares that the layers lose.
    pub(super) fn residual(layers: &[Layer], not_held: &[NotHeld]) -> f64 {
        let outside: f64 = not_held.iter().map(|p| p.change * p.change).sum();
        let all: f64 = layers.iter().map(|layer| layer.change * layer.change).sum();
        let left: f64 = layers.iter().map(|layer| (layer.residual * layer.change).powi(2)).sum();
        ((left + outside) / (all + outside)).sqrt()
    }

    /// The lowest and the highest rank.
    pub fn ranks(&self) -> (usize, usize) {
        let ranks = || self.layers.iter().map(|layer| layer.rank);
        (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0))
    }

    /// One line: how large the LoRA is and what it loses.
    pub fn line(&self) -> String {
        let s = if self.layers.len() == 1 { "" } else { "s" };
        let rank = match self.ranks() {
            (low, high) if low == high => format!("rank {low}"),
            (low, high) => format!("ranks {low} to {high}"),
        };
        let outside = match self.not_held.len() {
            0 => String::new(),
            n => format!(", with {n} changed parameter{} that no LoRA holds", if n == 1 { "" } else { "s" }),
        };
        format!("{} layer{s} of {rank}; relative residual {}{outside}", self.layers.len(), percent(self.residual))
    }

    /// A line for each layer, for what is not held, and for all of it.
    pub fn table(&self) -> String {
        let mut rows = vec![["layer".to_string(), "rank".into(), "change".into(), "residual".into()]];
        for layer in &self.layers {
            let name = layer.parameter.strip_suffix(".weight").unwrap_or(&layer.parameter);
            let (rank, change) = (layer.rank.to_string(), format!("{:.3e}", layer.change));
            rows.push([name.to_string(), rank, change, percent(layer.residual)]);
        }
        for outside in &self.not_held {
            let name = format!("{} (no LoRA holds it)", outside.parameter);
            rows.push([name, "-".into(), format!("{:.3e}", outside.change), percent(1.0)]);
        }
        let widths: Vec<usize> =
            (0..4).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
        let line = |[name, rank, change, residual]: &[String; 4]| {
            format!(
                "{name:<0$}  {rank:>1$}  {change:>2$}  {residual:>3$}\n",
                widths[0], widths[1], widths[2], widths[3]
            )
        };
        rows.iter().map(line).collect::<String>() + &self.line() + "\n"
    }
}

/// A share with three digits, however small: `12.3 %`, `0.0000345 %`.
fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        0.0 => "0 %".into(),
        p if p < 1e-3 => format!("{p:.2e} %"),
        p if p < 1.0 => format!("{p:.4} %"),
        p => format!("{p:.2} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_residual_is_that_of_everything_that_changed() {
        let layer = |name: &str, rank, change, residual| Layer {
            parameter: format!("{name}.weight"),
            name: name.into(),
            rank,
            change,
            residual,
        };
        let layers = vec![layer("a.to_k", 4, 3.0, 0.5), layer("b.conv1", 16, 4.0, 1e-7)];
        let not_held = vec![NotHeld { parameter: "a.norm.bias".into(), change: 1.2 }];
        assert_eq!(Summary::residual(&layers, &[]), (1.5f64 * 1.5 + 1.6e-13).sqrt() / 5.0);
        let residual = Summary::residual(&layers, &not_held);
        assert!((residual - ((2.25 + 1.44) / (25.0 + 1.44f64)).sqrt()).abs() < 1e-9, "{residual}");
        let summary = Summary { layers, not_held, residual, alpha: 16, parameters: 1000 };
        let expected = "layer                            rank     change    residual\n\
                        a.to_k                              4    3.000e0     50.00 %\n\
                        b.conv1                            16    4.000e0  1.00e-5 %\n";
        let table = summary.table();
        let words = |text: &str| text.split_whitespace().map(ToString::to_string).collect::<Vec<_>>();
        assert!(words(&table).starts_with(&words(expected)), "{table}");
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[..4].iter().all(|line| line.chars().count() == lines[0].chars().count()), "{table}");
        assert!(lines[3].starts_with("a.norm.bias (no LoRA holds it)") && lines[3].ends_with("100.00 %"), "{table}");
        let all = "2 layers of ranks 4 to 16; relative residual 37.36 %, with 1 changed parameter that no LoRA holds";
        assert_eq!(lines[4], all);
    }

    #[test]
    fn shares_keep_their_digits() {
        for (share, text) in [(0.0, "0 %"), (1.0, "100.00 %"), (0.00345, "0.3450 %"), (3.4e-8, "3.40e-6 %")] {
            assert_eq!(percent(share), text);
        }
    }
}
