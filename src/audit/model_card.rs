//! The model card: a `README.md` that tells people and the Hub what a model is.

use super::report::Report;
use crate::checkpoint::{License, title};
use crate::concept::Concept;
use std::fmt::Write;

/// What a card is made of.
pub struct Card<'a> {
    /// Everything that was found.
    pub report: &'a Report,
    /// What was erased.
    pub concept: &'a Concept,
    /// The base's short name.
    pub model: &'a str,
    /// Its licence, if it says one.
    pub license: Option<&'a License>,
    /// What was written, and what it is.
    pub files: &'a [(&'static str, String)],
}

impl Card<'_> {
    /// The card as Markdown with YAML at its top.
    pub fn markdown(&self) -> String {
        let mut out = self.front_matter();
        let report = self.report;
        let base = match &report.hub {
            Some(hub) => format!("[{0}](https://huggingface.co/{0}) (commit {1})", hub.repo, hub.commit),
            None => self.model.to_string(),
        };
        let names: Vec<&str> = self.concept.each().iter().map(|one| one.name.as_str()).collect();
        let each: Vec<String> =
            self.concept.each().iter().map(|one| format!("«{}» ({})", one.name, one.kind)).collect();
        let _ = write!(
            out,
            "# {}\n\n{base}, from whose weights {} was erased: the weights that matter most for it were reset and the model \
             repaired without learning it again ({} by erase-concept {}).\n",
            title(self.model, &names),
            each.join(" and "),
            report.method,
            report.version,
        );
        out.push_str("\n## Measured\n\nThe same prompts and seeds, before and after:\n\n");
        for line in report.summary(self.concept).lines() {
            let _ = writeln!(out, "- {line}");
        }
        if let Some(detector) = &report.detector {
            let _ = writeln!(
                out,
                "\nCounted by: {}, SHA-256 `{}`; {}. Pictures of {} steps, {}, guidance {}.",
                detector.name,
                detector.sha256,
                detector.rule,
                report.verification.steps,
                report.verification.scheduler,
                report.verification.guidance_scale,
            );
        }
        out.push_str(
            "\nThe pictures, every prompt and every setting are in `report.html` (for programs: `report.json`) beside this file.\n\
             \n## Limits\n\n\
             - Not a guarantee of safety. What was counted is what the prompts in the report draw; other words, other languages, \
             pictures as input or a later training may bring the concept back.\n\
             - What is near to the concept may have changed too: look at the pictures of everything else in the report.\n\
             - A detector errs. Where none knows the concept, nothing was counted.\n",
        );
        out.push_str("\n## Files\n\n");
        for (file, what) in self.files {
            let _ = writeln!(out, "- `{file}`: {what}");
        }
        let _ = write!(
            out,
            "\n## How it was made\n\n```\n{}\n```\n\nBase, SHA-256: `{}`. The same command with the same version on the same kind of \
             device gives the same bytes.\n",
            report.command, report.base_sha256,
        );
        out.push_str("\n## Licence\n\n");
        match self.license {
            Some(License { id, name, link }) => {
                let name = name.as_ref().unwrap_or(id);
                let link = link.as_ref().map_or_else(String::new, |link| format!(" ({link})"));
                let _ = writeln!(out, "That of the base: {name}{link}.");
            }
            None => {
                out.push_str("That of the base, whose files do not say which: look it up where the base came from.\n")
            }
        }
        out
    }

    fn front_matter(&self) -> String {
        let mut lines = vec!["---".to_string()];
        // a string of JSON is one of YAML
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        if let Some(license) = self.license {
            lines.push(format!("license: {}", quoted(&license.id)));
            lines.extend(license.name.as_ref().map(|name| format!("license_name: {}", quoted(name))));
            lines.extend(license.link.as_ref().map(|link| format!("license_link: {}", quoted(link))));
        }
        lines.push("library_name: diffusers".into());
        lines.push("pipeline_tag: text-to-image".into());
        if let Some(hub) = &self.report.hub {
            lines.push(format!("base_model: {}", quoted(&hub.repo)));
            lines.push("base_model_relation: finetune".into());
        }
        lines.push("tags:\n- stable-diffusion\n- text-to-image\n- concept-erasure\n- erase-concept\n---\n\n".into());
        lines.join("\n")
    }
}
