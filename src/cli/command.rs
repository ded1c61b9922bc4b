//! The command that makes a result again: every flag on which its bytes depend, and none besides.

use super::options::EraseOptions;
use crate::checkpoint::{Precision, lora};
use std::fmt::Display;

/// The command line. Where the result goes and how many threads or devices of one kind work on it change no byte, so they are left out.
pub fn command(options: &EraseOptions) -> String {
    let mut line = Line("erase-concept".into());
    let (o, v, s) = (&options.overrides, &options.verify, &options.sampling);
    line.flag("--model", Some(&options.model));
    line.flag("--revision", options.lookup.revision.as_ref());
    for concept in &options.concept_arguments {
        line.flag("--concept", Some(concept));
    }
    line.flag("--kind", options.kind);
    for preserve in &options.preserve_arguments {
        line.flag("--preserve", Some(preserve));
    }
    for format in &options.formats {
        line.flag("--format", Some(format));
    }
    let (lora, usual) = (&options.lora, lora::Options::default());
    line.flag("--rank", (lora.rank != usual.rank).then_some(lora.rank));
    line.flag("--strength", (lora.strength != usual.strength).then_some(lora.strength));
    line.flag("--seed", Some(options.seed));
    line.flag("--preset", Some(&options.preset));
    line.flag("--kept", o.kept);
    line.flag("--other-words", o.other_words);
    line.flag("--edit", o.edit);
    line.flag("--repair-steps", o.repair_steps);
    line.flag("--learning-rate", o.learning_rate);
    line.flag("--lambda", o.lambda);
    line.flag("--batch-size", o.batch_size);
    line.flag("--score-batches", o.score_batches);
    line.flag("--memories", o.memories);
    line.flag("--memory-every", o.memory_every);
    line.flag("--margin", o.margin);
    line.flag("--score-scope", o.score_scope.as_ref());
    line.flag("--trim-scope", o.trim_scope.as_ref());
    line.flag("--train-scope", o.train_scope.as_ref());
    line.flag("--project-scope", o.project_scope.as_ref());
    line.flag("--forget-latents", o.forget_latents);
    line.flag("--retain-latents", o.retain_latents);
    line.flag("--data-steps", o.data_steps);
    line.flag("--scheduler", s.sampler);
    let precision = options.precision;
    line.flag("--dtype", (precision != Precision::default()).then_some(precision));
    line.flag("--device", options.device.must_be_said().then_some(&options.device));
    line.flag("--guidance-scale", s.guidance_scale);
    line.flag("--verify-images", Some(v.images));
    line.flag("--synonym-images", Some(v.synonym_images));
    line.flag("--retain-images", Some(v.retain_images));
    line.flag("--verify-steps", Some(v.steps));
    line.flag("--verify-seed", Some(v.seed));
    line.flag("--max-rate", v.max_rate);
    line.flag("--max-synonym-rate", v.max_synonym_rate);
    for (flag, given) in [
        ("--tf32", options.tf32),
        ("--half", lora.half),
        ("--keep-images", v.keep_images),
        ("--show", v.show),
        ("--allow-pickle", options.lookup.allow_pickle),
    ] {
        if given {
            line.0.push_str(&format!(" {flag}"));
        }
    }
    line.0
}

struct Line(String);

impl Line {
    fn flag(&mut self, flag: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.0.push_str(&format!(" {flag} {}", quoted(&value.to_string())));
        }
    }
}

/// A word as a POSIX shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::args::Cli;
    use super::*;
    use clap::Parser;

    fn options(words: &[String]) -> EraseOptions {
        let cli = Cli::try_parse_from(words).unwrap();
        EraseOptions::try_from(&cli.erase).unwrap()
    }

    /// What a shell makes of a line.
    fn words(line: &str) -> Vec<String> {
        let shell = std::process::Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output().unwrap();
        String::from_utf8(shell.stdout).unwrap().lines().map(String::from).collect()
    }

    #[test]
    fn the_command_gives_the_same_options_again() {
        let all = "erase-concept --model demo --revision main --concept x --concept ring --kind object --preserve pink --preserve trees --format single-file --format lora --rank 4 --strength -0.5 --seed 7 --preset paper --kept 0.98 --other-words 5 --edit 2 \
                   --repair-steps 9 --learning-rate 0.0003 --lambda 0.5 --batch-size 6 --score-batches 2 --memories 2 --memory-every 3 --margin \
                   0.25 --score-scope full --trim-scope T --train-scope full --project-scope selfattn --forget-latents 3 \
                   --retain-latents 5 --data-steps 4 --scheduler ddim --dtype bf16 --guidance-scale 3.5 --verify-images 11 \
                   --synonym-images 12 --retain-images 13 --verify-steps 14 --verify-seed 15 \
                   --tf32 --half --keep-images --show";
        let given: Vec<String> = all
            .split_whitespace()
            .map(|word| match word {
                "x" => "it's a \"gnome\" $HOME".to_string(),
                "T" => "{up_blocks.1,up_blocks.2}.*attn1*".to_string(),
                _ => word.to_string(),
            })
            .collect();
        let wanted = options(&given);
        let line = command(&wanted);
        assert_eq!(words(&line), given);
        assert_eq!(format!("{:?}", options(&words(&line))), format!("{wanted:?}"));
        // a step count for everything comes back as the two that it stands for
        let steps = ["erase-concept", "--concept", "star", "--steps", "5", "--max-rate", "0.1"].map(String::from);
        let line = command(&options(&steps));
        assert!(
            line.contains("--data-steps 5") && line.contains("--verify-steps 5") && line.contains("--max-rate 0.1")
        );
    }
}
