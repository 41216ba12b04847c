//! The exit of a server role: a one-line error, a hint, and a fixed code.

use std::error::Error;
use std::process::ExitCode;

/// The role failed while it ran.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// This computer is not ready: a port or directory is in use, or the role runs already.
pub const NOT_READY: u8 = 4;
/// The host has rejected this computer: its token, name, clock or certificate.
pub const REFUSED: u8 = 5;
/// Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// The reason for the process's exit.
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

    /// Formats an error and its sources as one line.
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
