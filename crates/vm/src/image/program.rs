//! Programs of the distribution that images are made with.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::ImageError;
use crate::distribution::find_program;

/// What does not end in this time hangs.
const LIMIT: Duration = Duration::from_secs(1800);
/// So much of a program's complaint is shown.
const SAID_BYTES: usize = 600;

/// Something this machine lacks, and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    pub what: &'static str,
    pub package: &'static str,
}

pub(super) const QEMU_IMG: Missing = Missing { what: "qemu-img", package: "qemu-utils" };

impl Missing {
    /// Whether it is not there: a program of that name, or a file where `what` is a path.
    pub fn is_missing(&self) -> bool {
        let there = if self.what.starts_with('/') {
            Path::new(self.what).exists()
        } else {
            find_program(self.what).is_some()
        };
        !there
    }

    pub(super) fn words(missing: &[Self]) -> String {
        let names: Vec<&str> = missing.iter().map(|missing| missing.what).collect();
        format!("this machine lacks {}", names.join(", "))
    }

    pub(super) fn install_command(missing: &[Self]) -> String {
        let mut packages: Vec<&str> = missing.iter().map(|missing| missing.package).collect();
        packages.sort_unstable();
        packages.dedup();
        format!("install it with: apt-get install {}", packages.join(" "))
    }
}

/// All that is missing is told at once.
pub(super) fn require(needed: &[Missing]) -> Result<(), ImageError> {
    let missing: Vec<Missing> = needed.iter().copied().filter(Missing::is_missing).collect();
    if missing.is_empty() { Ok(()) } else { Err(ImageError::MissingPrograms(missing)) }
}

/// A program with its arguments, never a shell.
pub(super) struct Program {
    name: &'static str,
    command: Command,
}

impl Program {
    pub fn new(name: &'static str) -> Self {
        let path = find_program(name).unwrap_or_else(|| PathBuf::from(name));
        let mut command = Command::new(path);
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).kill_on_drop(true);
        Self { name, command }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    pub fn command(self) -> Command {
        self.command
    }

    /// What it printed.
    pub async fn output(self) -> Result<Vec<u8>, ImageError> {
        self.with_input(b"").await
    }

    /// The same, with something to read.
    pub async fn with_input(mut self, input: &[u8]) -> Result<Vec<u8>, ImageError> {
        let failed = |error: io::Error| ImageError::Program {
            program: self.name,
            said: format!("it cannot be run: {error}"),
        };
        if !input.is_empty() {
            self.command.stdin(Stdio::piped());
        }
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // All that is fed here fits into a pipe. One that does not want it tells why itself.
            let _ = stdin.write_all(input).await;
        }
        match tokio::time::timeout(LIMIT, child.wait_with_output()).await {
            Err(_) => Err(said(self.name, b"it did not end within half an hour")),
            Ok(Err(error)) => Err(failed(error)),
            Ok(Ok(Output { status, stdout, .. })) if status.success() => Ok(stdout),
            Ok(Ok(Output { stderr, .. })) => Err(said(self.name, &stderr)),
        }
    }
}

/// The end of a program's complaint.
pub(super) fn said(program: &'static str, stderr: &[u8]) -> ImageError {
    let tail = &stderr[stderr.len().saturating_sub(SAID_BYTES)..];
    let text = String::from_utf8_lossy(tail);
    let text = text.trim();
    let said = if text.is_empty() { "it does not say why" } else { text };
    ImageError::Program { program, said: said.replace('\n', "; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_fails_is_told_with_its_own_words() {
        let error = Program::new("ls").arg("/no/such/file").output().await.unwrap_err();
        assert!(error.to_string().contains("/no/such/file"), "{error}");
        assert_eq!(Program::new("cat").with_input(b"abc").await.unwrap(), b"abc");
    }

    #[test]
    fn everything_that_is_missing_is_told_at_once() {
        let lacking = |what| Missing { what, package: "some-package" };
        let needed = [lacking("no-such-program"), lacking("sh"), lacking("/no/such/file")];
        let error = require(&needed).unwrap_err();
        assert_eq!(error.to_string(), "this machine lacks no-such-program, /no/such/file");
        assert_eq!(error.hint().unwrap(), "install it with: apt-get install some-package");
    }
}
