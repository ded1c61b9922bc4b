//! Which parameters a stage of the method looks at: a name, or a glob over parameter names.

use crate::{Error, Result};
use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A named set of UNet parameters (the published `train_method`s, in diffusers' names), or a glob.
#[derive(Debug, Clone)]
pub struct Scope {
    name: String,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    Named(fn(&str) -> bool),
    Glob(GlobMatcher),
}

/// Name, what it covers, and the rule.
type Named = (&'static str, &'static str, fn(&str) -> bool);

/// The names of Scissorhands' and ESD's `train_method`, translated from CompVis to diffusers names.
/// `xweights` is the program's own: what a LoRA can hold.
pub const NAMED: [Named; 8] = [
    ("xattn", "cross-attention (attn2)", |n| n.contains("attn2")),
    ("xweights", "cross-attention's matrices, without biases", |n| n.contains("attn2") && n.ends_with(".weight")),
    ("full", "every parameter", |_| true),
    ("selfattn", "self-attention (attn1)", |n| n.contains("attn1")),
    ("noxattn", "all but cross-attention, time embedding and output head", |n| !n.contains("attn2") && no_time(n)),
    ("notime", "all but time embedding and output head", no_time),
    ("xlayer", "attn2 of two up blocks", |n| {
        n.contains("attn2") && (n.contains("up_blocks.2.attentions.0") || n.contains("up_blocks.2.attentions.2"))
    }),
    ("selflayer", "attn1 of two down blocks", |n| {
        n.contains("attn1") && (n.contains("down_blocks.1.attentions.0") || n.contains("down_blocks.2.attentions.0"))
    }),
];

fn no_time(name: &str) -> bool {
    !["conv_norm_out", "conv_out", "time_embedding"].iter().any(|start| name.starts_with(start))
}

impl Scope {
    /// A scope by name, or any other text as a glob (`*` also matches dots; `{a,b}` means either).
    ///
    /// # Errors
    /// If the text is not a valid glob.
    pub fn parse(text: &str) -> Result<Self> {
        let rule = match NAMED.iter().find(|(name, _, _)| *name == text) {
            Some((_, _, rule)) => Rule::Named(*rule),
            None => {
                let glob = Glob::new(text).map_err(|e| Error::usage(format!("scope {text:?}: {e}")))?;
                Rule::Glob(glob.compile_matcher())
            }
        };
        Ok(Self { name: text.to_string(), rule })
    }

    /// Whether nothing outside of cross-attention can be in the scope.
    pub fn is_cross_attention(&self) -> bool {
        matches!(self.name.as_str(), "xattn" | "xweights" | "xlayer")
    }

    /// Whether the parameter of this name is in the scope.
    pub fn contains(&self, name: &str) -> bool {
        match &self.rule {
            Rule::Named(rule) => rule(name),
            Rule::Glob(glob) => glob.is_match(name),
        }
    }

    /// The names that are in the scope, in the given order.
    ///
    /// # Errors
    /// If there is none.
    pub fn select<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Result<Vec<String>> {
        let names: Vec<String> = names.into_iter().filter(|name| self.contains(name)).cloned().collect();
        if names.is_empty() {
            let known: Vec<_> = NAMED.iter().map(|(name, _, _)| *name).collect();
            return Err(Error::usage(format!(
                "scope {:?} matches no parameter of this UNet; use one of {}, or a glob such as '*attn2.to_k.weight'",
                self.name,
                known.join(", ")
            )));
        }
        Ok(names)
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl std::str::FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cover_what_the_papers_code_covers() {
        let all = [
            "conv_in.weight",
            "conv_out.bias",
            "time_embedding.linear_1.weight",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            "up_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            "up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight",
            "up_blocks.1.resnets.0.time_emb_proj.weight",
            "up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_out.0.bias",
        ]
        .map(String::from);
        let count = |scope: &str| Scope::parse(scope).unwrap().select(&all).unwrap().len();
        let counts = ["full", "xattn", "xweights", "selfattn", "noxattn", "notime", "xlayer", "selflayer"].map(count);
        assert_eq!(counts, [8, 3, 2, 1, 3, 6, 1, 1]);
        assert_eq!(count("*.attn2.to_k.weight"), 2);
        assert_eq!(count("{conv_in,conv_out}.*"), 2);
    }

    #[test]
    fn a_scope_that_matches_nothing_says_what_would() {
        let error = Scope::parse("xatn").unwrap().select(&["conv_in.weight".to_string()]).unwrap_err().to_string();
        assert!(error.contains("\"xatn\" matches no parameter") && error.contains("xattn"), "{error}");
        assert!(Scope::parse("{a").is_err());
    }
}
