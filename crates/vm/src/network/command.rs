//! Running `ip`, `bridge`, `nft` and `iptables`: argument lists and scripts, never a shell.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// They take milliseconds; `iptables` may wait for others that hold its lock.
const LIMIT: Duration = Duration::from_secs(20);
/// A service's own may lack the administrator's directories.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MOST_WORDS: usize = 600;

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{program} cannot be run; is it installed? (packages iproute2 and nftables)")]
    Missing {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot {what}: {words}")]
    Failed { what: &'static str, words: String },
    #[error("{program} did not end within {} s", LIMIT.as_secs())]
    Slow { program: String },
    #[error("{program} gave an answer that is not understood")]
    Answer {
        program: String,
        #[source]
        source: serde_json::Error,
    },
}

/// Runs a program to its end and gives what it said; `what` completes "cannot ...".
pub(super) async fn run(what: &'static str, argv: &[&str]) -> Result<Vec<u8>, CommandError> {
    succeeded(what, finish(argv, "").await?)
}

/// The same, with a script on its standard input.
pub(super) async fn script(
    what: &'static str,
    argv: &[&str],
    script: &str,
) -> Result<(), CommandError> {
    succeeded(what, finish(argv, script).await?).map(drop)
}

fn succeeded(what: &'static str, output: Output) -> Result<Vec<u8>, CommandError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words: String = words.trim().chars().take(MOST_WORDS).collect();
    Err(CommandError::Failed { what, words })
}

/// Runs a program to its end, however that is.
pub(super) async fn finish(argv: &[&str], script: &str) -> Result<Output, CommandError> {
    let program = argv.first().copied().unwrap_or_default();
    let mut command = Command::new(program);
    command
        .args(argv.get(1..).unwrap_or_default())
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(if script.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let missing = |source| CommandError::Missing { program: program.to_owned(), source };
    let mut child = command.spawn().map_err(missing)?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read to the end says why with its status.
        let _ = input.write_all(script.as_bytes()).await;
    }
    let slow = |_| CommandError::Slow { program: program.to_owned() };
    timeout(LIMIT, child.wait_with_output()).await.map_err(slow)?.map_err(missing)
}
