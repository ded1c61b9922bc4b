//! Progress is an event, not a print: long work reports here, the terminal, a JSON stream or a test decides what to show.

use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Something that happened during long work.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// A stage begins; `steps` is how many [`Event::Step`] will follow.
    Stage {
        /// What is done, in a few words: «sampling 96 forget latents».
        name: &'a str,
        /// How many steps it takes.
        steps: usize,
    },
    /// One more step of the current stage is done.
    Step {
        /// The loss of this step, where there is one.
        loss: Option<f64>,
    },
    /// A transfer begins: a stage that is counted in bytes.
    Transfer {
        /// What is transferred: «fetching OWNER/NAME».
        name: &'a str,
        /// How many bytes there will be.
        bytes: u64,
    },
    /// So many bytes of the current transfer are here now, in all; fewer than before if a part had to begin anew.
    Received {
        /// Bytes.
        bytes: u64,
    },
    /// Something the user should know; not an error.
    Note(&'a str),
}

/// Receives the events of long work.
pub trait Progress {
    /// Called for each event, in order.
    fn event(&mut self, event: Event<'_>);
}

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn event(&mut self, _: Event<'_>) {}
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Asks all running work to stop at its next step (called by the Ctrl-C handler).
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// `Err(Error::Interrupted)` once [`interrupt`] was called. Long loops call this at each step.
pub fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) { Err(Error::Interrupted) } else { Ok(()) }
}
