//! `kohakuriver doctor`: problems and risks of this machine and of the host, with their remedies.

mod cluster;
pub mod data;
mod exposure;
mod finding;
mod here;
mod host;

use std::path::PathBuf;

use crate::context::Context;
use crate::error::CommandError;
use crate::ui::{Tone, one_line, printable};
use finding::{Finding, State};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Nothing is changed. Run it on your own machine for what concerns you; on the host's machine, as
root, it looks at the data directory too; as an admin, at the audit log.
Ends with 1 if anything is bad; `warn` needs attention.

Examples:
  kohakuriver doctor
  kohakuriver doctor --json | jq '.[] | select(.state != \"ok\")'")]
pub struct DoctorArgs {
    /// Data directory of this machine's host or runner [default: as reported by the host, or
    /// /var/lib/kohakuriver as root].
    #[arg(long, value_name = "DIR", env = "KOHAKURIVER_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

pub async fn run(context: &Context, args: &DoctorArgs) -> Result<(), CommandError> {
    let told = data::told(context).await;
    let (data, elsewhere) = data::choose(args.data_dir.clone(), told, &context.api.place());
    let mut findings = here::inspect(context, &data);
    findings.extend(data::inspect(&data));
    findings.extend(elsewhere.filter(|_| data.join("host").exists()));
    findings.extend(host::inspect(context).await);
    if context.out.json {
        context.out.json(&findings);
    } else {
        print(context, &findings);
    }
    if findings.iter().any(|finding| finding.state == State::Bad) {
        return Err(CommandError::reported());
    }
    Ok(())
}

fn print(context: &Context, findings: &[Finding]) {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    for finding in findings {
        let tone = match finding.state {
            State::Ok => Tone::Good,
            State::Warn => Tone::Busy,
            State::Bad => Tone::Bad,
        };
        let state = context.out.paint(tone, &format!("{:4}", finding.state.word()));
        let text = one_line(&printable(&finding.found));
        context.out.styled(format!("{state}  {:width$}  {text}", finding.check));
        if let Some(advice) = &finding.advice {
            context.out.line(format!("{:6}{:width$}  -> {advice}", "", ""));
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    context.out.note(match (count(State::Bad), count(State::Warn)) {
        (0, 0) => "all is well".to_owned(),
        (bad, warn) => format!("{bad} bad, {warn} to check"),
    });
}
