//! What the process tells the shell.

use crate::Error;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// Done.
    Done,
    /// Done, but a limit that was asked for is missed (`--max-rate`).
    LimitMissed,
    /// Could not run: flags, files, weights.
    CouldNotRun,
    /// Stopped by Ctrl-C or SIGTERM.
    Interrupted,
}

impl ExitCode {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::LimitMissed => 1,
            Self::CouldNotRun => 2,
            Self::Interrupted => 130,
        }
    }
}

impl From<&Error> for ExitCode {
    fn from(error: &Error) -> Self {
        match error {
            Error::Interrupted => Self::Interrupted,
            _ => Self::CouldNotRun,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_documented_ones() {
        let codes = [ExitCode::Done, ExitCode::LimitMissed, ExitCode::CouldNotRun, ExitCode::Interrupted];
        assert_eq!(codes.map(ExitCode::code), [0, 1, 2, 130]);
    }

    #[test]
    fn only_an_interruption_is_not_a_failure() {
        assert_eq!(ExitCode::from(&Error::Interrupted), ExitCode::Interrupted);
        let failures =
            [Error::usage("x"), Error::file("x", "y"), Error::Weights("x".into()), Error::Numeric("x".into())];
        assert!(failures.iter().all(|error| ExitCode::from(error) == ExitCode::CouldNotRun));
    }
}
