//! The models of an audit: found and hashed before anything is drawn, loaded one after another.

use super::options::RunOptions;
use crate::audit::run::{Frame, ModelRecord};
use crate::checkpoint::{LoadedModel, Loading, ModelFiles, base_sha256, load_model_on};
use crate::cli::checks::model_name;
use crate::diffusion::{Sampler, Schedule, SchedulerConfig, timesteps};
use crate::nn::ComputeDevice;
use crate::progress::{Event, Progress};
use crate::{Error, Result, hub};

/// A model that was found.
pub struct Subject {
    pub files: ModelFiles,
    pub record: ModelRecord,
    pub frame: Frame,
    pub sampler: Sampler,
}

/// Finds and hashes every model.
pub fn subjects(options: &RunOptions, progress: &mut dyn Progress) -> Result<Vec<Subject>> {
    let mut subjects: Vec<Subject> = Vec::with_capacity(options.models.len());
    for model in &options.models {
        let hub::Found { files, origin } = hub::find(model, &options.lookup, progress)?;
        files.notes().iter().for_each(|note| progress.event(Event::Note(note)));
        let name = free_name(&model_name(model), &subjects);
        let config = "scheduler/scheduler_config.json";
        let text = String::from_utf8(files.read(config)?.into_owned());
        let scheduler = text.map_err(|e| Error::file(files.describe(config), e));
        let scheduler = SchedulerConfig::from_json(&scheduler?).map_err(|e| Error::file(files.describe(config), e))?;
        let sampler = options.sampling.sampler.unwrap_or_else(|| scheduler.sampler());
        timesteps(sampler, &Schedule::new(&scheduler)?, options.steps)?;
        let frame = Frame::of(&files, &name)?;
        for (flag, side) in [("--width", options.selection.width), ("--height", options.selection.height)] {
            if let Some(side) = side.filter(|side| !side.is_multiple_of(frame.unit)) {
                let what = format!("{flag} {side}: {name} draws multiples of {}", frame.unit);
                return Err(Error::usage(what));
            }
        }
        let sha256 = base_sha256(&files)?;
        subjects.push(Subject { files, record: ModelRecord { name, sha256, hub: origin }, frame, sampler });
    }
    Ok(subjects)
}

/// The name, or the next free one: models from several folders may be called alike.
fn free_name(name: &str, taken: &[Subject]) -> String {
    let free = |name: &String| taken.iter().all(|other| !other.record.name.eq_ignore_ascii_case(name));
    let mut names = std::iter::once(name.to_string()).chain((2u64..).map(|n| format!("{name}-{n}")));
    names.find(free).unwrap_or_default() // there is always one
}

/// Loads a model, which must be what was hashed.
pub fn load(
    subject: &Subject,
    options: &RunOptions,
    compute: &ComputeDevice,
    progress: &mut dyn Progress,
) -> Result<LoadedModel> {
    let name = format!("loading {}", subject.record.name);
    progress.event(Event::Stage { name: &name, steps: 1 });
    let exact = |_: &str| false;
    let loading = Loading { precision: options.precision, exact: &exact, beside: None, device: compute.device() };
    let loaded = load_model_on(&subject.files, &loading, &compute.further())?;
    if loaded.base_sha256 != subject.record.sha256 {
        return Err(Error::file(subject.files.describe(""), "the model's files changed meanwhile; run again"));
    }
    progress.event(Event::Step { loss: None });
    Ok(loaded)
}
