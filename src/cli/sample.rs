//! `erase-concept sample`: prompts to pictures, each of which can be made again alone.

use super::ExitCode;
use super::checks::{model_name, open};
use super::options::SampleOptions;
use super::output::Display;
use crate::audit::{Infotext, encode_png, to_images};
use crate::checkpoint::{Loading, OutputFolder, load_model_on, write_file};
use crate::diffusion::{Schedule, timesteps};
use crate::progress::{Event, Progress, check_interrupted};
use crate::{Result, hub, sd};
use serde_json::json;

/// Guidance of a picture where the user says nothing: what diffusers takes.
const GUIDANCE_SCALE: f64 = 7.5;
/// Denoising steps where the user says nothing.
const STEPS: usize = 30;

/// One picture to make.
struct Picture<'a> {
    prompt: &'a str,
    seed: u64,
    file: String,
}

/// Renders every prompt, `num_images` pictures each, into a new folder.
pub fn run(options: &SampleOptions, display: &mut Display) -> Result<ExitCode> {
    let compute = open(&options.device, options.tf32, display)?;
    let hub::Found { files, origin } = hub::find(&options.model, &options.lookup, display)?;
    files.notes().iter().for_each(|note| display.event(Event::Note(note)));
    display.event(Event::Stage { name: "loading the model", steps: 1 });
    let exact = |_: &str| false;
    let loading = Loading { precision: options.precision, exact: &exact, beside: None, device: compute.device() };
    let loaded = load_model_on(&files, &loading, &compute.further())?;
    display.event(Event::Step { loss: None });
    let model = &loaded.model;

    let sampling = sd::SampleOptions {
        sampler: options.sampling.sampler.unwrap_or_else(|| model.scheduler.sampler()),
        steps: options.sampling.steps.unwrap_or(STEPS),
        guidance_scale: options.sampling.guidance_scale.unwrap_or(GUIDANCE_SCALE),
        eta: options.eta,
        size: None,
    };
    timesteps(sampling.sampler, &Schedule::new(&model.scheduler)?, sampling.steps)?;
    say_what_is_cut(options, model, display)?;
    check_interrupted()?;
    let pictures = pictures(options);
    let replicas = model.replicas()?;
    let folder = OutputFolder::create(&options.output, options.overwrite)?;
    display.event(Event::Stage { name: "rendering", steps: pictures.len() });
    let batches: Vec<&[Picture<'_>]> = pictures.chunks(options.batch_size).collect();
    let draw = |replica: &sd::Replica<'_>, i: usize| {
        let batch = batches[i];
        let prompts: Vec<&str> = batch.iter().map(|picture| picture.prompt).collect();
        let negatives = vec![options.negative_prompt.as_str(); batch.len()];
        let seeds: Vec<u64> = batch.iter().map(|picture| picture.seed).collect();
        to_images(&replica.pixels(&sampling, &prompts, &negatives, &seeds)?)
    };
    replicas.deal(batches.len(), draw, |i, images| {
        for (picture, image) in batches[i].iter().zip(images) {
            let text = Infotext {
                prompt: picture.prompt,
                negative_prompt: &options.negative_prompt,
                steps: sampling.steps,
                sampler: &sampling.sampler.to_string(),
                guidance_scale: sampling.guidance_scale,
                seed: picture.seed,
                size: image.dimensions(),
                model_hash: &loaded.base_sha256,
                model: &model_name(&options.model),
            };
            let path = folder.path().join(&picture.file);
            let png = encode_png(&image, &[("parameters", &text.to_string())])?;
            write_file(&path, &png)?;
            display.event(Event::Step { loss: None });
        }
        Ok(())
    })?;
    display.event(Event::Stage { name: "moving the result into place", steps: 1 });
    folder.commit()?;
    display.event(Event::Step { loss: None });
    report(options, &pictures, origin.as_ref(), display);
    Ok(ExitCode::Done)
}

/// Prompt by prompt; picture i of all has the seed S + i.
fn pictures(options: &SampleOptions) -> Vec<Picture<'_>> {
    let prompts = options.prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, options.num_images));
    prompts
        .enumerate()
        .map(|(i, prompt)| {
            let seed = options.seed.wrapping_add(i as u64);
            Picture { prompt, seed, file: format!("{i:05}_{seed}.png") }
        })
        .collect()
}

fn say_what_is_cut(options: &SampleOptions, model: &sd::StableDiffusion, display: &mut Display) -> Result<()> {
    let texts: Vec<&str> = options.prompts.iter().chain([&options.negative_prompt]).map(String::as_str).collect();
    for (i, lost) in model.tokenizer.encode(&texts)?.truncated {
        let note = format!("the prompt {:?} is longer than the model takes; left out at its end: {lost:?}", texts[i]);
        display.event(Event::Note(&note));
    }
    Ok(())
}

fn report(options: &SampleOptions, pictures: &[Picture<'_>], origin: Option<&hub::Origin>, display: &mut Display) {
    let rows = pictures.iter().map(|p| json!({ "file": p.file, "prompt": p.prompt, "seed": p.seed }));
    let (output, rows) = (options.output.display().to_string(), rows.collect::<Vec<_>>());
    let value = json!({ "output": output, "hub": origin, "images": rows });
    let plural = if pictures.len() == 1 { "picture" } else { "pictures" };
    display.result(&value, &format!("{} {plural} in {}", pictures.len(), options.output.display()));
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser;

    fn options(flags: &[&str]) -> SampleOptions {
        let cli = Cli::try_parse_from([&["erase-concept", "sample"], flags].concat()).unwrap();
        let Some(Command::Sample(args)) = cli.command else { panic!("not sample") };
        SampleOptions::try_from(&*args).unwrap()
    }

    #[test]
    fn image_i_has_the_seed_s_plus_i_over_all_prompts() {
        let options = options(&["--model", "demo", "--prompt", "a", "--prompt", "b", "-n", "2", "--seed", "41"]);
        let found: Vec<_> = pictures(&options).into_iter().map(|p| (p.prompt.to_string(), p.seed, p.file)).collect();
        let expected = [
            ("a", 41, "00000_41.png"),
            ("a", 42, "00001_42.png"),
            ("b", 43, "00002_43.png"),
            ("b", 44, "00003_44.png"),
        ];
        assert_eq!(found, expected.map(|(prompt, seed, file)| (prompt.to_string(), seed, file.to_string())));
        assert_eq!(options.output, std::path::Path::new("samples/demo-s41"));
    }
}
