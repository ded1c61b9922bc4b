//! The preset with the user's changes.

use super::options::EraseOptions;
use crate::Result;
use crate::erase::{Scope, Settings};

/// The method's settings for these options, checked as far as that goes without the model.
pub fn settings(options: &EraseOptions) -> Result<Settings> {
    let (o, sampling) = (&options.overrides, &options.sampling);
    let mut s = Settings::preset(&options.preset)?;
    set(&mut s.kept, &o.kept);
    set(&mut s.other_words, &o.other_words);
    set(&mut s.edit, &o.edit);
    set(&mut s.repair_steps, &o.repair_steps);
    set(&mut s.learning_rate, &o.learning_rate);
    set(&mut s.lambda, &o.lambda);
    set(&mut s.forget_batch, &o.batch_size);
    set(&mut s.retain_batch, &o.batch_size);
    set(&mut s.score_batches, &o.score_batches);
    set(&mut s.projection.memories, &o.memories);
    set(&mut s.projection.every, &o.memory_every);
    set(&mut s.projection.margin, &o.margin);
    set(&mut s.data.forget, &o.forget_latents);
    set(&mut s.data.retain, &o.retain_latents);
    set(&mut s.data.steps, &o.data_steps);
    set(&mut s.data.guidance_scale, &sampling.guidance_scale);
    set(&mut s.data.sampler, &sampling.sampler);
    let scopes = [
        (&mut s.score_scope, &o.score_scope),
        (&mut s.trim_scope, &o.trim_scope),
        (&mut s.train_scope, &o.train_scope),
        (&mut s.project_scope, &o.project_scope),
    ];
    for (scope, text) in scopes {
        if let Some(text) = text {
            *scope = Scope::parse(text)?;
        }
    }
    s.check()?;
    Ok(s)
}

fn set<T: Clone>(setting: &mut T, change: &Option<T>) {
    if let Some(value) = change {
        setting.clone_from(value);
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::Cli;
    use super::*;
    use clap::Parser;
    use serde_json::Value;

    fn parse(flags: &[&str]) -> Result<Settings> {
        let cli = Cli::try_parse_from([&["erase-concept", "--concept", "star"], flags].concat()).unwrap();
        settings(&EraseOptions::try_from(&cli.erase)?)
    }

    fn json(flags: &[&str]) -> Value {
        serde_json::to_value(parse(flags).unwrap()).unwrap()
    }

    /// The paths of all leaves that differ.
    fn differences(a: &Value, b: &Value, path: &str) -> Vec<String> {
        match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                x.iter().flat_map(|(key, value)| differences(value, &y[key], &format!("{path}/{key}"))).collect()
            }
            _ if a == b => Vec::new(),
            _ => vec![path.to_string()],
        }
    }

    #[test]
    fn each_flag_changes_its_setting_and_no_other() {
        let cases: [(&str, &str, &[&str]); 20] = [
            ("--kept", "0.5", &["/kept"]),
            ("--other-words", "7", &["/other_words"]),
            ("--edit", "0.75", &["/edit"]),
            ("--repair-steps", "7", &["/repair_steps"]),
            ("--learning-rate", "0.25", &["/learning_rate"]),
            ("--lambda", "0.125", &["/lambda"]),
            ("--batch-size", "3", &["/forget_batch", "/retain_batch"]),
            ("--score-batches", "5", &["/score_batches"]),
            ("--memories", "4", &["/projection/memories"]),
            ("--memory-every", "9", &["/projection/every"]),
            ("--margin", "0.75", &["/projection/margin"]),
            ("--score-scope", "notime", &["/score_scope"]),
            ("--trim-scope", "selfattn", &["/trim_scope"]),
            ("--train-scope", "xlayer", &["/train_scope"]),
            ("--project-scope", "*to_k*", &["/project_scope"]),
            ("--forget-latents", "11", &["/data/forget"]),
            ("--retain-latents", "13", &["/data/retain"]),
            ("--data-steps", "17", &["/data/steps"]),
            ("--steps", "19", &["/data/steps"]),
            ("--scheduler", "euler", &["/data/sampler"]),
        ];
        let preset = json(&[]);
        for (flag, value, expected) in cases {
            let mut found = differences(&preset, &json(&[flag, value]), "");
            found.sort();
            assert_eq!(found, expected, "{flag}");
        }
    }

    #[test]
    fn a_preset_is_taken_whole() {
        let official = serde_json::to_value(Settings::preset("official").unwrap()).unwrap();
        assert_eq!(json(&["--preset", "official"]), official);
        assert_ne!(json(&[]), official);
    }

    #[test]
    fn senseless_settings_are_refused_by_the_flags_name() {
        for (flag, value) in [
            ("--kept", "1"),
            ("--kept", "NaN"),
            ("--edit", "-1"),
            ("--repair-steps", "0"),
            ("--learning-rate", "-1"),
            ("--lambda", "inf"),
            ("--steps", "0"),
            ("--guidance-scale", "NaN"),
            ("--verify-images", "0"),
            ("--max-rate", "5"),
            ("--max-rate", "NaN"),
            ("--scheduler", "dmd"),
            ("--preset", "oficial"),
            ("--device", "cuda:0"),
        ] {
            let flag_value = format!("{flag}={value}");
            let cli = Cli::try_parse_from(["erase-concept", "--concept", "star", &flag_value]).unwrap();
            let run = super::super::options::RunOptions::try_from(&cli.erase.run).map(|_| ());
            let message = run.and_then(|()| parse(&[&flag_value]).map(|_| ())).unwrap_err().to_string();
            assert!(message.contains(flag), "{flag_value}: {message}");
        }
    }
}
