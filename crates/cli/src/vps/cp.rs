//! `kohakuriver vps cp`: files and trees to, from and between VPSes.
//!
//! ```text
//!  list ──> choose ──> read ──> write          each at its own pace, with short queues between
//!  what     what is    from the into the
//!  there    missing    source   target
//!  is       there
//! ```
//!
//! Every stage runs all the time, and requests are sent ahead of their answers, so that ten
//! thousand small files take no ten thousand round trips.

mod choose;
mod item;
mod local;
mod place;
mod remote;
mod report;
mod single;
mod target;
mod transfer;

use std::ffi::OsString;
use std::sync::Arc;

use crate::context::Context;
use crate::error::CommandError;
use crate::wait;
use place::Destination;
use report::Report;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Write VPS:PATH for a file in a VPS; a PATH that does not begin with / is below /root. - is standard
input or output. Write a local name that contains a colon as ./a:b. Directories are copied recursively;
symlinks in them stay symlinks. Copies keep mode and modification time.

If TARGET is a directory, the copy goes into it. SOURCE/. copies the content of SOURCE only.

A file is replaced atomically: readers see the old or the new content. After an interruption, the
same command resumes: it skips files that have the same size and time at the target, and continues
the one it stopped at.

Examples:
  kohakuriver vps cp data.tar web:/srv/
  kohakuriver vps cp web:/var/log ./logs
  kohakuriver vps cp ./site/. web:/srv/site
  kohakuriver vps cp web:/srv/db.sqlite backup:
  pg_dump shop | kohakuriver vps cp - web:/root/shop.sql")]
pub struct CopyArgs {
    /// Source: a local path, VPS:PATH, or - for standard input.
    #[arg(value_name = "SOURCE")]
    source: OsString,
    /// Target: a local path, VPS:PATH, or - for standard output.
    #[arg(value_name = "TARGET", allow_hyphen_values = true)]
    target: OsString,
    /// Copy every file, including those already at the target.
    #[arg(long)]
    no_resume: bool,
}

pub async fn run(context: &Context, args: &CopyArgs) -> Result<(), CommandError> {
    let source = Destination::parse(&args.source)?;
    let target = Destination::parse(&args.target)?;
    let report = Arc::new(Report::default());
    let work = copy(context, &source, &target, !args.no_resume, &report);
    let again = match (&source, &target) {
        (Destination::Stdio, _) | (_, Destination::Stdio) => None,
        _ => Some("run the same command again to resume"),
    };
    let result = wait::unless_interrupted(work, || {
        let failure = CommandError::interrupted("interrupted");
        match again {
            Some(again) => failure.hint(again),
            None => failure,
        }
    })
    .await;
    // Printed after a failure too: it says how much was copied.
    report.summary(context.out, result.is_ok() && !matches!(target, Destination::Stdio));
    result?;
    report.verdict()
}

async fn copy(
    context: &Context,
    source: &Destination,
    target: &Destination,
    resume: bool,
    report: &Arc<Report>,
) -> Result<(), CommandError> {
    match (source, target) {
        (
            Destination::Local(_) | Destination::Stdio,
            Destination::Local(_) | Destination::Stdio,
        ) => Err(CommandError::usage("neither SOURCE nor TARGET is in a VPS")
            .hint("write VPS:PATH for a file in a VPS, for example web:/srv/data")),
        (Destination::Stdio, Destination::Remote { vps, path }) => {
            single::from_stdin(context, vps, path, report).await
        }
        (Destination::Remote { vps, path }, Destination::Stdio) => {
            single::to_stdout(context, vps, path, report).await
        }
        (
            Destination::Local(_) | Destination::Remote { .. },
            Destination::Local(_) | Destination::Remote { .. },
        ) => transfer::run(context, source, target, resume, report).await,
    }
}
