//! `erase-concept compare`: two models on the same prompts and seeds, side by side.

pub mod args;

use super::ExitCode;
use super::audit::judges::counters;
use super::checks::{at_least_one, check_output, device, labels, model_name, open, precision};
use super::evidence::write_json;
use super::options::Sampling;
use super::output::Display;
use super::stopwatch::Stopwatch;
use crate::audit::html::{self, CompareReport};
use crate::audit::run::{
    Counter, Frame, Judgement, Judges, PAIRED_DEFINITION, PairedLabel, PromptSet, Selection, TOGETHER, UsedDetector,
    Wanted, draw, rates,
};
use crate::audit::{
    DRIFT_DEFINITION, Drawn, Grid, GridRow, Infotext, Labels, Move, averaged_down, by_prompt, encode_png, mean,
    moves_of,
};
use crate::checkpoint::{Loading, ModelFiles, OutputFolder, Precision, load_model_on, write_file};
use crate::diffusion::Sampler;
use crate::hub::Lookup;
use crate::nn::{ComputeDevice, Devices};
use crate::progress::{Event, Progress, check_interrupted};
use crate::sd::{Replica, SampleOptions};
use crate::{Error, Result, hub};
use args::CompareArgs;
use image::RgbImage;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Guidance where nothing is said: what diffusers takes.
const GUIDANCE_SCALE: f64 = 7.5;
/// Denoising steps where the user says nothing.
const STEPS: usize = 30;
/// Pictures of each model in the grid.
const IN_GRID: usize = 64;

/// The comparison.
#[derive(Debug, Clone)]
pub struct Options {
    models: [String; 2],
    lookup: Lookup,
    source: Source,
    seed: u64,
    num_images: usize,
    detectors: Vec<String>,
    labels: Option<Labels>,
    sampling: Sampling,
    output: PathBuf,
    overwrite: bool,
    precision: Precision,
    device: Devices,
    tf32: bool,
}

/// Where prompts come from.
#[derive(Debug, Clone)]
enum Source {
    Prompts(Vec<String>),
    File(PathBuf, usize),
}

impl TryFrom<&CompareArgs> for Options {
    type Error = Error;

    fn try_from(args: &CompareArgs) -> Result<Self> {
        let models = [args.a.clone(), args.b.clone()];
        let output = args.output.clone().unwrap_or_else(|| {
            let name = format!("{}-{}-s{}", model_name(&models[0]), model_name(&models[1]), args.seed);
            PathBuf::from("compared").join(name)
        });
        let [a, b] = models.each_ref().map(|model| Some(Path::new(model)));
        check_output(&output, args.overwrite, [("A", a), ("B", b)])?;
        Ok(Self {
            source: match &args.prompts {
                Some(file) => Source::File(file.clone(), at_least_one("--limit", args.limit)?),
                None => Source::Prompts(args.prompt.clone()),
            },
            lookup: Lookup::from(&args.hub),
            seed: args.seed,
            detectors: args.detector.clone(),
            labels: labels(&args.detector, &args.label, args.label_template.as_deref())?,
            num_images: at_least_one("--num-images", args.num_images)?,
            sampling: Sampling::try_from(&args.sampling)?,
            output,
            overwrite: args.overwrite,
            precision: precision(&args.run)?,
            device: device(&args.run)?,
            tf32: args.run.tf32,
            models,
        })
    }
}

/// A picture that both models draw.
struct Asked {
    prompt: String,
    seed: u64,
    guidance_scale: f64,
    size: (usize, usize),
}

impl Asked {
    fn wanted(&self) -> Wanted<'_> {
        let Self { prompt, seed, guidance_scale, size } = self;
        Wanted { prompt, seed: *seed, guidance_scale: *guidance_scale, size: *size }
    }
}

/// One model's pictures.
struct Side {
    name: String,
    sha256: String,
    sampler: Sampler,
    images: Vec<RgbImage>,
    found: Vec<Judgement>,
}

impl Side {
    /// What a detector found in each picture.
    fn labels(&self, detector: &UsedDetector) -> Vec<&[String]> {
        self.found.iter().map(|found| found.labels.get(&detector.key).map_or(&[][..], Vec::as_slice)).collect()
    }
}

/// Draws, compares, and writes grid, page and numbers.
pub fn run(options: &Options, display: &mut Display) -> Result<ExitCode> {
    let mut watch = Stopwatch::new(display);
    let compute = open(&options.device, options.tf32, &mut watch)?;
    let mut files = Vec::new();
    for model in &options.models {
        let found = hub::find(model, &options.lookup, &mut watch)?;
        found.files.notes().iter().for_each(|note| watch.event(Event::Note(note)));
        files.push(found.files);
    }
    let names = names(&options.models);
    let frames: Vec<Frame> =
        files.iter().zip(&names).map(|(files, name)| Frame::of(files, name)).collect::<Result<_>>()?;
    let asked = asked(options, &frames, &mut watch)?;
    let models: Vec<&ModelFiles> = files.iter().collect();
    let counters =
        counters(&options.detectors, options.labels.as_ref(), &models, &options.lookup, compute.device(), &mut watch)?;
    let judges = Judges { counters, clip: None };
    let folder = OutputFolder::create(&options.output, options.overwrite)?;
    let mut sides = Vec::new();
    for (files, name) in files.iter().zip(names) {
        let mut drawn = side(options, &compute, files, name, &asked, folder.path(), &mut watch)?;
        drawn.found = look(&judges, &asked, &drawn.images)?;
        sides.push(drawn);
    }
    let used: Vec<UsedDetector> = judges.counters.iter().map(Counter::used).collect();
    let result = write(options, &compute, &asked, &sides, &used, folder.path())?;
    write_json(&folder.path().join("run.json"), &watch.record(options.precision, &compute))?;
    watch.event(Event::Stage { name: "moving the result into place", steps: 1 });
    folder.commit()?;
    watch.event(Event::Step { loss: None });
    let text = text(&result, &options.output);
    display.result(&json!({ "output": options.output.display().to_string(), "comparison": result }), &text);
    Ok(ExitCode::Done)
}

/// What the models are called; the second gets a number if both are called alike.
fn names(models: &[String; 2]) -> [String; 2] {
    let [a, b] = models.each_ref().map(|model| model_name(model));
    let b = if a.eq_ignore_ascii_case(&b) { format!("{b}-2") } else { b };
    [a, b]
}

fn asked(options: &Options, frames: &[Frame], progress: &mut dyn Progress) -> Result<Vec<Asked>> {
    let side = frames.first().map_or(512, |frame| frame.side); // both draw the first one's size
    let guidance_scale = options.sampling.guidance_scale.unwrap_or(GUIDANCE_SCALE);
    let (file, limit) = match &options.source {
        Source::Prompts(prompts) => {
            let prompts = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, options.num_images));
            let asked = |(i, prompt): (usize, &String)| Asked {
                prompt: prompt.clone(),
                seed: options.seed.wrapping_add(i as u64),
                guidance_scale,
                size: (side, side),
            };
            return Ok(prompts.enumerate().map(asked).collect());
        }
        Source::File(file, limit) => (file, *limit),
    };
    let selection = Selection {
        seed: options.seed,
        guidance_scale,
        width: None,
        height: None,
        ignore: Vec::new(),
        from_case: None,
        limit: Some(limit),
        samples: options.num_images,
    };
    let set = PromptSet::read(file, &selection, frames, false)?;
    set.skipped.iter().for_each(|row| progress.event(Event::Note(&format!("skipped {row}"))));
    let of_row = |row: &crate::audit::run::Row| {
        let asked = |sample| Asked {
            prompt: row.prompt.clone(),
            seed: row.seed_of(sample),
            guidance_scale: row.guidance_scale,
            size: (row.size.0.unwrap_or(side), row.size.1.unwrap_or(side)),
        };
        (0..options.num_images).map(asked).collect::<Vec<_>>()
    };
    Ok(set.rows.iter().flat_map(of_row).collect())
}

/// All pictures of one model, which are written as they come.
fn side(
    options: &Options,
    compute: &ComputeDevice,
    files: &ModelFiles,
    name: String,
    asked: &[Asked],
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<Side> {
    progress.event(Event::Stage { name: &format!("loading {name}"), steps: 1 });
    let exact = |_: &str| false;
    let loading = Loading { precision: options.precision, exact: &exact, beside: None, device: compute.device() };
    let loaded = load_model_on(files, &loading, &compute.further())?;
    progress.event(Event::Step { loss: None });
    let model = &loaded.model;
    let sampling = SampleOptions {
        sampler: options.sampling.sampler.unwrap_or_else(|| model.scheduler.sampler()),
        steps: options.sampling.steps.unwrap_or(STEPS),
        guidance_scale: GUIDANCE_SCALE,
        eta: 0.0,
        size: None,
    };
    let images_folder = folder.join("images").join(&name);
    std::fs::create_dir_all(&images_folder).map_err(Error::io(&images_folder))?;
    progress.event(Event::Stage { name: &format!("rendering: {name}"), steps: asked.len() });
    let mut images = Vec::with_capacity(asked.len());
    let alike = |a: &Asked, b: &Asked| a.size == b.size && a.guidance_scale == b.guidance_scale;
    let batches: Vec<&[Asked]> = asked.chunk_by(alike).flat_map(|alike| alike.chunks(model.together())).collect();
    let sample = |replica: &Replica<'_>, i: usize| {
        draw(replica, &sampling, &batches[i].iter().map(Asked::wanted).collect::<Vec<_>>())
    };
    model.replicas()?.deal(batches.len(), sample, |i, drawn| {
        for (asked, image) in batches[i].iter().zip(drawn) {
            let text = Infotext {
                prompt: &asked.prompt,
                negative_prompt: "",
                steps: sampling.steps,
                sampler: &sampling.sampler.to_string(),
                guidance_scale: asked.guidance_scale,
                seed: asked.seed,
                size: image.dimensions(),
                model_hash: &loaded.base_sha256,
                model: &name,
            };
            let path = images_folder.join(format!("{:05}_{}.png", images.len(), asked.seed));
            write_file(&path, &encode_png(&image, &[("parameters", &text.to_string())])?)?;
            images.push(image);
            progress.event(Event::Step { loss: None });
        }
        Ok(())
    })?;
    Ok(Side { name, sha256: loaded.base_sha256, sampler: sampling.sampler, images, found: Vec::new() })
}

/// What every detector finds in the pictures, those of one size together.
fn look(judges: &Judges, asked: &[Asked], images: &[RgbImage]) -> Result<Vec<Judgement>> {
    let mut found = Vec::with_capacity(images.len());
    for images in images.chunk_by(|a, b| a.dimensions() == b.dimensions()).flat_map(|alike| alike.chunks(TOGETHER)) {
        check_interrupted()?;
        let prompts: Vec<&str> = asked.iter().skip(found.len()).take(images.len()).map(|a| a.prompt.as_str()).collect();
        found.extend(judges.look(images, &prompts, &|_| true, false)?);
    }
    Ok(found)
}

/// Writes `grid.png`, `report.html` and `compare.json`; returns what the last holds.
fn write(
    options: &Options,
    compute: &ComputeDevice,
    asked: &[Asked],
    sides: &[Side],
    detectors: &[UsedDetector],
    folder: &Path,
) -> Result<Value> {
    let [a, b] = sides else { return Err(Error::usage("two models are compared")) };
    let drawn = |side: &Side| -> Vec<Drawn> {
        let drawn = |(asked, image): (&Asked, &RgbImage)| Drawn {
            group: "compared",
            prompt: asked.prompt.clone(),
            seed: asked.seed,
            image: averaged_down(image),
        };
        asked.iter().zip(&side.images).map(drawn).collect()
    };
    let (first, second) = (drawn(a), drawn(b));
    let moves = moves_of(&first, &second);
    let (prompts, all) = (by_prompt(moves.iter()), mean(moves.iter()));
    let all = all.ok_or_else(|| Error::usage("there are no pictures to compare"))?;
    fn row(side: &Side) -> GridRow<'_> {
        let images: Vec<&RgbImage> = side.images.iter().take(IN_GRID).collect();
        GridRow { label: side.name.clone(), blur: vec![false; images.len()], images }
    }
    let grid = Grid {
        title: format!("{} and {}: the same prompts and seeds", a.name, b.name),
        rows: vec![row(a), row(b)],
        captions: asked.iter().take(IN_GRID).map(|asked| format!("{} #{}", asked.prompt, asked.seed)).collect(),
    };
    write_file(&folder.join("grid.png"), &encode_png(&grid.draw(), &[])?)?;
    let steps = options.sampling.steps.unwrap_or(STEPS);
    let samplers = if a.sampler == b.sampler { a.sampler.to_string() } else { format!("{}, {}", a.sampler, b.sampler) };
    let settings = [
        ("steps", steps.to_string()),
        ("scheduler", samplers),
        ("guidance", guidance(asked)),
        ("weights in memory", options.precision.name().to_string()),
        ("device", html::device(compute.name(), compute.tf32())),
    ];
    let paired: Vec<PairedLabel> =
        detectors.iter().flat_map(|d| PairedLabel::all(d, &a.labels(d), &b.labels(d))).collect();
    let page = CompareReport {
        names: [&a.name, &b.name],
        hashes: [&a.sha256, &b.sha256],
        images: [&a.images, &b.images],
        moves: &moves,
        mean: &all,
        prompts: &prompts,
        settings: &settings,
        detectors,
        paired: &paired,
    };
    write_file(&folder.join("report.html"), page.html()?.as_bytes())?;
    let picture = |(asked, m): (&Asked, &Move<'_>)| {
        json!({
            "prompt": asked.prompt, "seed": asked.seed, "guidance_scale": asked.guidance_scale, "width": asked.size.0,
            "height": asked.size.1, "difference": m.difference, "ssim": m.ssim,
        })
    };
    let model = |side: &Side| {
        let mut model = json!({ "name": side.name, "sha256": side.sha256, "scheduler": side.sampler.to_string() });
        if !detectors.is_empty() {
            let of = |d: &UsedDetector| (d.key.clone(), json!(rates(d, &side.labels(d))));
            model["labels"] = detectors.iter().map(of).collect::<serde_json::Map<_, _>>().into();
        }
        model
    };
    let mut result = json!({
        "schema": "erase-concept.compare/1",
        "version": env!("CARGO_PKG_VERSION"),
        "models": [model(a), model(b)],
        "steps": steps,
        "dtype": options.precision.name(),
        "device": compute.name(),
        "tf32": compute.tf32(),
        "definition": DRIFT_DEFINITION,
        "mean": all,
        "prompts": prompts,
        "pictures": asked.iter().zip(&moves).map(picture).collect::<Vec<_>>(),
    });
    if !detectors.is_empty() {
        result["detectors"] = json!(detectors);
        result["paired"] = json!({ "definition": PAIRED_DEFINITION, "labels": paired });
    }
    write_json(&folder.join("compare.json"), &result)?;
    Ok(result)
}

fn guidance(asked: &[Asked]) -> String {
    let mut scales: Vec<String> = asked.iter().map(|asked| asked.guidance_scale.to_string()).collect();
    scales.sort();
    scales.dedup();
    scales.join(", ")
}

/// A few lines for people: the mean and the prompts that moved most and least.
fn text(result: &Value, output: &Path) -> String {
    const NAMED: usize = 3;
    let line = |drift: &Value| {
        format!(
            "  {:6.1} of 255, SSIM {:.3}: {}",
            drift["difference"].as_f64().unwrap_or(0.0),
            drift["ssim"].as_f64().unwrap_or(0.0),
            drift["prompt"].as_str().unwrap_or("all pictures")
        )
    };
    let prompts = result["prompts"].as_array().map_or(&[][..], Vec::as_slice);
    let mut lines =
        vec!["mean difference of a pixel's value, and structural similarity:".into(), line(&result["mean"])];
    match prompts.len() > 2 * NAMED {
        true => {
            lines.extend(prompts[..NAMED].iter().map(line));
            lines.push(format!("  ... {} more", prompts.len() - 2 * NAMED));
            lines.extend(prompts[prompts.len() - NAMED..].iter().map(line));
        }
        false => lines.extend(prompts.iter().map(line)),
    }
    let paired = result["paired"]["labels"].as_array().map_or(&[][..], Vec::as_slice);
    lines.extend(paired.iter().map(|label| {
        let number = |key: &str| label[key].as_f64().unwrap_or(0.0);
        let name = label["label"].as_str().unwrap_or_default();
        format!("  {name}: {:+.1} points, McNemar's p {:.2e}", -100.0 * number("drop"), number("p"))
    }));
    lines.push(format!("result: {} (grid.png, report.html, compare.json, images)", output.display()));
    lines.join("\n")
}
