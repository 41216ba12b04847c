//! How a server role ends: one line, a hint, and a fixed code.

use std::error::Error;
use std::process::ExitCode;

/// The role failed while it ran.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// This machine is not ready for it: a port, a directory, a second start.
pub const NOT_READY: u8 = 4;
/// The host would not have this machine: token, name, clock, certificate.
pub const REFUSED: u8 = 5;
/// Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Why the process ends.
#[derive(Debug)]
pub struct Exit {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Exit {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// One line with the chain of causes.
    pub fn from_error(code: u8, error: &dyn Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self::new(code, message)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn report(self) -> ExitCode {
        let out = kohakuriver_cli::Output::new(false);
        out.note(format!("error: {}", self.message));
        if let Some(hint) = self.hint {
            out.hint(hint);
        }
        ExitCode::from(self.code)
    }
}
