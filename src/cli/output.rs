//! What the user sees while work goes on. The style is decided once; data goes to stdout, everything else to stderr.

use crate::Error;
use crate::hub::progress_bars_are_disabled;
use crate::progress::{Event, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The version of the JSON lines; rises when a field changes its meaning or goes away.
pub const SCHEMA: &str = "erase-concept.events/1";

/// Plain lines for a long stage are at least this far apart.
const QUIET_TIME: Duration = Duration::from_secs(10);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A bar with loss and time left, on a terminal.
    Bars,
    /// A line when a stage begins, ends, and now and then between.
    Lines,
    /// A line for every step.
    EveryStep,
    /// An object a line, on stdout.
    Json,
    /// Errors only.
    Quiet,
}

impl Style {
    /// Decides the style from the flags and from whether stderr is a terminal that can draw.
    pub fn decide(json: bool, quiet: bool, verbose: bool) -> Self {
        let can_draw = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self::from_facts(json, quiet, verbose, can_draw)
    }

    fn from_facts(json: bool, quiet: bool, verbose: bool, can_draw: bool) -> Self {
        match (json, quiet, verbose, can_draw) {
            (true, ..) => Self::Json,
            (_, true, ..) => Self::Quiet,
            (_, _, true, _) => Self::EveryStep,
            (_, _, _, true) => Self::Bars,
            _ => Self::Lines,
        }
    }
}

/// A stage that is going on.
struct Stage {
    name: String,
    steps: usize,
    done: usize,
    loss: Option<f64>,
    began: Instant,
    spoke: Instant,
    bar: Option<ProgressBar>,
    /// Of a transfer, whose steps are bytes: how many were there when it began.
    there_before: Option<u64>,
}

/// Shows progress, notes, the result and errors in the style that was decided.
pub struct Display {
    style: Style,
    stage: Option<Stage>,
}

impl Display {
    /// A display that has shown nothing yet.
    pub fn new(style: Style) -> Self {
        Self { style, stage: None }
    }

    /// Ends the current stage, if there is one.
    pub fn finish(&mut self) {
        let Some(stage) = self.stage.take() else { return };
        let seconds = stage.began.elapsed().as_secs_f64();
        let loss = stage.loss.map_or_else(String::new, |loss| format!(", loss {loss:.4}"));
        let what = if stage.there_before.is_some() { bytes(stage.done as u64) } else { count(stage.done) };
        let line = format!("{}: {what} in {seconds:.1} s{loss}", stage.name);
        match (self.style, stage.bar) {
            (Style::Bars, Some(bar)) => {
                bar.finish_and_clear();
                say(&line);
            }
            (Style::Lines | Style::EveryStep, _) => say(&line),
            _ => {}
        }
    }

    /// Shows the result: `text` for people, `value` for programs.
    pub fn result(&mut self, value: &Value, text: &str) {
        self.finish();
        match self.style {
            Style::Json => self.json(json!({ "event": "result", "result": value })),
            Style::Quiet => {}
            _ => print(text.trim_end()),
        }
    }

    /// Shows why the work ended.
    pub fn error(&mut self, error: &Error) {
        if let Some(Stage { bar: Some(bar), .. }) = self.stage.take() {
            bar.abandon();
        }
        if self.style == Style::Json {
            let interrupted = matches!(error, Error::Interrupted);
            self.json(json!({ "event": "error", "message": error.to_string(), "interrupted": interrupted }));
        }
        say(&format!("error: {error}"));
    }

    fn json(&self, mut value: Value) {
        if let Some(object) = value.as_object_mut() {
            object.shift_insert(0, "schema".into(), SCHEMA.into());
        }
        print(&value.to_string());
    }

    fn begin(&mut self, name: &str, steps: usize) {
        self.finish();
        let bar = (self.style == Style::Bars).then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
            let template = "{prefix:<28} {bar:30} {pos}/{len} {msg} {eta} left";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(name.to_string());
            bar.tick();
            bar
        });
        match self.style {
            Style::Json => self.json(json!({ "event": "stage", "name": name, "steps": steps })),
            Style::Lines | Style::EveryStep => say(&format!("{name} ({})", count(steps))),
            Style::Bars | Style::Quiet => {}
        }
        let now = Instant::now();
        let (name, there_before) = (name.into(), None);
        self.stage = Some(Stage { name, steps, done: 0, loss: None, began: now, spoke: now, bar, there_before });
    }

    fn transfer(&mut self, name: &str, total: u64) {
        self.finish();
        let bar = (self.style == Style::Bars && !progress_bars_are_disabled()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template =
                "{prefix:<28} {bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(name.to_string());
            bar.tick();
            bar
        });
        match self.style {
            Style::Json => self.json(json!({ "event": "transfer", "name": name, "bytes": total })),
            Style::Quiet => {}
            _ if bar.is_none() => say(&format!("{name} ({})", bytes(total))),
            _ => {}
        }
        let (now, steps) = (Instant::now(), usize::try_from(total).unwrap_or(usize::MAX));
        let there_before = Some(0);
        self.stage =
            Some(Stage { name: name.into(), steps, done: 0, loss: None, began: now, spoke: now, bar, there_before });
    }

    fn received(&mut self, received: u64) {
        let style = self.style;
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.there_before.is_some()) else { return };
        if stage.done == 0 && stage.began.elapsed() < Duration::from_secs(1) {
            stage.there_before = Some(received); // what an earlier run fetched says nothing of the speed
        }
        stage.done = usize::try_from(received).unwrap_or(usize::MAX);
        if let Some(bar) = &stage.bar {
            bar.set_position(received);
        }
        let interval = if style == Style::EveryStep { Duration::from_secs(1) } else { QUIET_TIME };
        match style {
            Style::Json => {
                let line = json!({ "event": "received", "bytes": received, "of": stage.steps });
                self.json(line);
            }
            Style::Quiet => {}
            _ if stage.bar.is_none() && stage.spoke.elapsed() >= interval => {
                let new = received.saturating_sub(stage.there_before.unwrap_or(0)) as f64;
                let speed = new / stage.began.elapsed().as_secs_f64();
                let left = (stage.steps as f64 - received as f64) / speed;
                let left = if speed > 0.0 { format!(" about {left:.0} s left") } else { String::new() };
                say(&format!("  {} of {}{left}", bytes(received), bytes(stage.steps as u64)));
                stage.spoke = Instant::now();
            }
            _ => {}
        }
    }

    fn step(&mut self, loss: Option<f64>) {
        let style = self.style;
        let Some(stage) = &mut self.stage else { return };
        stage.done += 1;
        stage.loss = loss.or(stage.loss);
        let shown = stage.loss.map_or_else(String::new, |loss| format!("loss {loss:.4}"));
        match style {
            Style::Bars => {
                if let Some(bar) = &stage.bar {
                    bar.set_message(shown);
                    bar.inc(1);
                }
            }
            Style::EveryStep => say(&format!("  {}/{} {shown}", stage.done, stage.steps)),
            Style::Lines if stage.spoke.elapsed() >= QUIET_TIME && stage.done < stage.steps => {
                // the first of a batch of steps says nothing about the time that a step takes
                let left = stage.began.elapsed().as_secs_f64() / stage.done as f64 * (stage.steps - stage.done) as f64;
                let left = if stage.done > 1 { format!(" about {left:.0} s left") } else { String::new() };
                say(&format!("  {}/{} {shown}{left}", stage.done, stage.steps));
                stage.spoke = Instant::now();
            }
            Style::Json => {
                let line = json!({ "event": "step", "step": stage.done, "steps": stage.steps, "loss": loss });
                self.json(line);
            }
            Style::Lines | Style::Quiet => {}
        }
    }
}

impl Progress for Display {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Stage { name, steps } => self.begin(name, steps),
            Event::Step { loss } => self.step(loss),
            Event::Transfer { name, bytes } => self.transfer(name, bytes),
            Event::Received { bytes } => self.received(bytes),
            Event::Note(text) => match (self.style, &self.stage) {
                (Style::Json, _) => self.json(json!({ "event": "note", "text": text })),
                (Style::Quiet, _) => {}
                (_, Some(Stage { bar: Some(bar), .. })) => bar.suspend(|| say(text)),
                _ => say(text),
            },
        }
    }
}

fn count(steps: usize) -> String {
    if steps == 1 { "1 step".into() } else { format!("{steps} steps") }
}

fn bytes(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// A line on stderr; a closed stderr is nobody's problem.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A line on stdout; a reader that went away (`| head`) must not end the work.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_only_for_terminals_and_json_beats_all() {
        assert_eq!(Style::from_facts(false, false, false, true), Style::Bars);
        assert_eq!(Style::from_facts(false, false, false, false), Style::Lines);
        assert_eq!(Style::from_facts(false, false, true, true), Style::EveryStep);
        assert_eq!(Style::from_facts(false, true, false, true), Style::Quiet);
        assert_eq!(Style::from_facts(true, true, false, true), Style::Json);
    }

    #[test]
    fn counts_steps_and_remembers_the_last_loss() {
        let mut display = Display::new(Style::Quiet);
        display.event(Event::Step { loss: None }); // before any stage: ignored
        display.event(Event::Stage { name: "repairing", steps: 3 });
        display.event(Event::Step { loss: Some(0.5) });
        display.event(Event::Step { loss: None });
        let stage = display.stage.as_ref().unwrap();
        assert_eq!((stage.done, stage.steps, stage.loss), (2, 3, Some(0.5)));
        display.event(Event::Stage { name: "writing", steps: 1 });
        assert_eq!(display.stage.as_ref().map(|s| (s.name.as_str(), s.done)), Some(("writing", 0)));
        display.finish();
        assert!(display.stage.is_none());
    }

    #[test]
    fn bytes_are_counted_in_transfers_alone() {
        let mut display = Display::new(Style::Quiet);
        display.event(Event::Stage { name: "loading", steps: 1 });
        display.event(Event::Received { bytes: 7 }); // not of this stage
        assert_eq!(display.stage.as_ref().unwrap().done, 0);
        display.event(Event::Transfer { name: "fetching", bytes: 10 });
        display.event(Event::Received { bytes: 7 });
        display.event(Event::Received { bytes: 3 }); // a part began anew
        let stage = display.stage.as_ref().unwrap();
        assert_eq!((stage.done, stage.steps, stage.there_before), (3, 10, Some(7)));
        assert_eq!(bytes(3_400_000_000), "3.40 GB");
    }
}
