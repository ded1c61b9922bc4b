//! Makes the pictures of one model: batches are sampled while the pictures of the last are looked at, encoded, hashed and written
//! by a thread beside. Several devices sample batches in their turns.

use super::header::Header;
use super::judge::{Judgement, Judges};
use super::manifest::{Entry, Manifest};
use super::plan::{PromptSet, Row, Shot};
use crate::audit::{Infotext, encode_png, to_images};
use crate::checkpoint::{sha256_hex, write_file};
use crate::progress::{Event, Progress};
use crate::sd::{Replica, SampleOptions, StableDiffusion};
use crate::{Error, Result};
use image::RgbImage;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

/// Batches that wait for the thread that writes; so few that memory stays flat.
const WAITING: usize = 2;
/// One picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted<'a> {
    /// What to draw.
    pub prompt: &'a str,
    /// The noise's seed.
    pub seed: u64,
    /// Guidance.
    pub guidance_scale: f64,
    /// Width and height in pixels.
    pub size: (usize, usize),
}

/// Draws pictures together, all in the size and with the guidance of the first.
///
/// # Errors
/// If the user interrupts or something is not finite.
pub fn draw(replica: &Replica<'_>, sampling: &SampleOptions, batch: &[Wanted<'_>]) -> Result<Vec<RgbImage>> {
    let Some(first) = batch.first() else { return Ok(Vec::new()) };
    let latent = |pixels: usize| pixels / replica.model.vae.downsampling();
    let sampling = SampleOptions {
        guidance_scale: first.guidance_scale,
        size: Some((latent(first.size.1), latent(first.size.0))),
        ..sampling.clone()
    };
    let prompts: Vec<&str> = batch.iter().map(|wanted| wanted.prompt).collect();
    let seeds: Vec<u64> = batch.iter().map(|wanted| wanted.seed).collect();
    to_images(&replica.pixels(&sampling, &prompts, &vec![""; batch.len()], &seeds)?)
}

/// How the pictures of one model are made.
pub struct Work<'a> {
    /// The audit's folder.
    pub folder: &'a Path,
    /// What the audit is.
    pub header: &'a Header,
    /// The prompt set.
    pub set: &'a PromptSet,
    /// The networks.
    pub model: &'a StableDiffusion,
    /// Which of the header's models it is.
    pub number: usize,
    /// Sampler and steps; size and guidance are those of the rows.
    pub sampling: SampleOptions,
    /// Pictures drawn at a time.
    pub batch: usize,
    /// What looks at the pictures.
    pub judges: &'a Judges,
}

/// Makes these pictures and enters them in the manifest, batches of one size and guidance in turn.
///
/// # Errors
/// If the user interrupts, a picture cannot be computed or written; what is finished stays, so that the next run goes on.
pub fn render(work: &Work<'_>, pending: &[Shot], manifest: &mut Manifest, progress: &mut dyn Progress) -> Result<()> {
    let replicas = work.model.replicas()?;
    let groups = groups(work.set, pending);
    let asked: Vec<&[&Shot]> = groups.iter().flat_map(|group| group.chunks(work.batch)).collect();
    std::thread::scope(|scope| {
        let (batches, to_write) = sync_channel::<Vec<(&Shot, RgbImage)>>(WAITING);
        let (written, count) = channel();
        let writer = scope.spawn(move || write_all(work, &to_write, manifest, &written));
        let sample = |replica: &Replica<'_>, i: usize| {
            let wanted: Vec<Wanted<'_>> = asked[i].iter().map(|shot| work.wanted(shot)).collect();
            draw(replica, &work.sampling, &wanted)
        };
        let made = replicas.deal(asked.len(), sample, |i, images| {
            let sent = batches.send(asked[i].iter().copied().zip(images).collect());
            steps(&count, progress);
            // the writer has gone only if it failed, which it tells below
            sent.map_err(|_| Error::Interrupted)
        });
        drop(batches);
        let wrote = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        steps(&count, progress);
        wrote.and(made)
    })
}

/// Pictures that can be drawn together, in the order in which their kinds appear.
fn groups<'s>(set: &PromptSet, pending: &'s [Shot]) -> Vec<Vec<&'s Shot>> {
    let mut groups: Vec<((usize, usize), f64, Vec<&Shot>)> = Vec::new();
    for shot in pending {
        let guidance = set.rows[shot.row].guidance_scale;
        match groups.iter_mut().find(|(size, g, _)| *size == shot.size && *g == guidance) {
            Some((_, _, group)) => group.push(shot),
            None => groups.push((shot.size, guidance, vec![shot])),
        }
    }
    groups.into_iter().map(|(_, _, group)| group).collect()
}

/// Passes on how many pictures were written since the last time.
fn steps(count: &Receiver<()>, progress: &mut dyn Progress) {
    count.try_iter().for_each(|()| progress.event(Event::Step { loss: None }));
}

fn write_all(
    work: &Work<'_>,
    to_write: &Receiver<Vec<(&Shot, RgbImage)>>,
    manifest: &mut Manifest,
    written: &Sender<()>,
) -> Result<()> {
    for batch in to_write {
        let (shots, images): (Vec<&Shot>, Vec<RgbImage>) = batch.into_iter().unzip();
        let prompts: Vec<&str> = shots.iter().map(|shot| work.row(shot).prompt.as_str()).collect();
        let judged = work.judges.look(&images, &prompts, &|_| true, true)?;
        for ((shot, image), judged) in shots.into_iter().zip(&images).zip(judged) {
            let entry = work.write(shot, image, judged)?;
            manifest.push(&entry)?;
            let _ = written.send(());
        }
    }
    Ok(())
}

impl Work<'_> {
    fn row(&self, shot: &Shot) -> &Row {
        &self.set.rows[shot.row]
    }

    fn wanted(&self, shot: &Shot) -> Wanted<'_> {
        let row = self.row(shot);
        Wanted { prompt: &row.prompt, seed: shot.seed, guidance_scale: row.guidance_scale, size: shot.size }
    }

    /// Writes a picture, if pictures are kept, and says what there is to say of it.
    fn write(&self, shot: &Shot, image: &RgbImage, judged: Judgement) -> Result<Entry> {
        let (row, model) = (self.row(shot), &self.header.models[self.number]);
        let text = Infotext {
            prompt: &row.prompt,
            negative_prompt: "",
            steps: self.sampling.steps,
            sampler: &self.sampling.sampler.to_string(),
            guidance_scale: row.guidance_scale,
            seed: shot.seed,
            size: image.dimensions(),
            model_hash: &model.sha256,
            model: &model.name,
        };
        let png = encode_png(image, &[("parameters", &text.to_string())])?;
        let name = || format!("{}/{}_{}.png", self.header.folder_of(self.number), row.case, shot.sample);
        let file = self.header.settings.images.then(name);
        if let Some(file) = &file {
            let path = self.folder.join(file);
            write_file(&path, &png).inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        }
        Ok(Entry {
            model: model.name.clone(),
            case: row.case.clone(),
            sample: shot.sample,
            line: row.line,
            prompt: row.prompt.clone(),
            seed: shot.seed,
            guidance_scale: row.guidance_scale,
            width: shot.size.0,
            height: shot.size.1,
            file,
            sha256: sha256_hex(&png),
            labels: judged.labels,
            scores: judged.scores,
            clip: judged.clip,
            ssim: None,
            columns: row.columns.clone(),
        })
    }
}
