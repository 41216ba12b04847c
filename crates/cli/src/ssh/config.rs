//! `kohakuriver ssh config`
//!
//! ssh reads the written file with the user's rights, and most of its content comes from the host and,
//! through it, from other accounts. So every value is parsed by the model's types before it is
//! written, and an entry that does not parse is skipped. A VPS never gets a name that means another
//! computer: a name in the user's own configuration, a reserved one, or another account's
//! `NAME.OWNER` that reads like a domain name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kohakuriver_api::Task;
use kohakuriver_model::{InstanceName, QualifiedName};

use super::certificate;
use super::route::{Route, task_id};
use crate::context::Context;
use crate::error::CommandError;
use crate::files;
use crate::vps::vocabulary::{self, called};

/// The top-level domains of other computers' names, public ones and those of local networks. Any two
/// letters count as a country's.
const DOMAINS: &[&str] = &[
    "app",
    "arpa",
    "biz",
    "cloud",
    "com",
    "corp",
    "dev",
    "edu",
    "example",
    "gov",
    "home",
    "host",
    "info",
    "int",
    "internal",
    "intranet",
    "invalid",
    "lab",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "mil",
    "name",
    "net",
    "onion",
    "online",
    "org",
    "private",
    "pro",
    "site",
    "store",
    "tech",
    "test",
    "xyz",
];

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The output has your own VPSes, and the shared ones that you took (`kohakuriver vps shares`), as
NAME.OWNER or under the name you chose. Names that ~/.ssh/config already has are not replaced.

Examples:
  kohakuriver ssh config --output ~/.ssh/kohakuriver.conf
  kohakuriver ssh config --prefix vps- --output ~/.ssh/kohakuriver.conf    hosts named vps-web
  scp data.tar web:/root/     after `Include kohakuriver.conf` in ~/.ssh/config")]
pub struct ConfigArgs {
    /// File to replace with the configuration [default: standard output].
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Prefix of each VPS's name, to avoid names of other computers [default: none].
    #[arg(long, value_name = "TEXT", value_parser = prefix)]
    prefix: Option<String>,
}

/// Parses a prefix, which forms a valid name with every name that follows.
fn prefix(text: &str) -> Result<String, String> {
    let name: InstanceName = format!("{text}x")
        .parse()
        .map_err(|_| "use lower-case letters, digits and hyphens, starting with a letter")?;
    if name.is_reserved() { Err("this prefix is taken".to_owned()) } else { Ok(text.to_owned()) }
}

pub async fn run(context: &Context, args: &ConfigArgs) -> Result<(), CommandError> {
    let tasks = context.api.vps_active().await?;
    let port = context.settings.ssh_proxy_port.value;
    let mut usable: Vec<_> =
        tasks.iter().filter(|task| task.status == "running" && is_entered(task)).collect();
    // If two VPSes would have the same name, the user's own gets it.
    usable.sort_by_key(|task| !is_own(task));
    if context.out.json && args.output.is_none() {
        context.out.json(&usable);
        return Ok(());
    }
    let mut text =
        String::from("# Written by `kohakuriver ssh config`; run it again after a change.\n");
    let by_account = !usable.is_empty() && certificate::people_log_in(context).await;
    let mut taken = own_hosts(&files::home()?.join(".ssh/config"));
    let mut count = 0;
    for task in &usable {
        match entry(context, task, (port, by_account), &mut taken, args.prefix.as_deref()).await {
            Ok(lines) => {
                text.push_str(&lines);
                count += 1;
            }
            Err(Left::Out(why)) => context.out.note(format!("warning: skipped: {why}")),
            Err(Left::Failed(failure)) => return Err(failure),
        }
    }
    if usable.is_empty() {
        context.out.note("no running VPS has SSH");
        context.out.hint("`kohakuriver vps create --ssh` creates one");
    }
    let Some(path) = &args.output else {
        context.out.raw(text.as_bytes());
        return Ok(());
    };
    files::replace(path, 0o600, text.as_bytes())
        .map_err(|error| files::unwritable(path, &error))?;
    // ssh resolves a relative path from ~/.ssh, not from the working directory.
    let full = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let things = if count == 1 { "VPS" } else { "VPSes" };
    let shown = full.display();
    context.out.note(format!("{count} {things} written to {shown}"));
    context.out.hint(format!("put `Include {shown}` at the top of ~/.ssh/config"));
    Ok(())
}

/// The reason why there is no entry.
enum Left {
    Out(String),
    Failed(CommandError),
}

impl From<CommandError> for Left {
    fn from(failure: CommandError) -> Self {
        Self::Failed(failure)
    }
}

async fn entry(
    context: &Context,
    task: &Task,
    (port, by_account): (u16, bool),
    taken: &mut BTreeSet<String>,
    prefix: Option<&str>,
) -> Result<String, Left> {
    let damaged = |what: &str| Left::Out(format!("the host sent a VPS with {what}"));
    task_id(task).map_err(|failure| Left::Out(failure.message))?;
    let name = match called(task) {
        id if *id == task.task_id => None,
        text => Some(Name::parse(text).ok_or_else(|| damaged("an invalid name"))?),
    };
    // An invalid host key skips the entry; a file that cannot be written ends the command.
    if task
        .ssh_host_key
        .as_deref()
        .is_some_and(|key| russh::keys::PublicKey::from_openssh(key).is_err())
    {
        return Err(Left::Out(format!("the SSH host key of VPS {} is invalid", called(task))));
    }
    let route = Route::to(context, task, port)?;
    let mut names = vec![route.alias.clone()];
    if let Some(name) = name {
        match name.host(prefix, taken) {
            Ok(host) => {
                taken.insert(host.to_ascii_lowercase());
                names.push(host);
            }
            Err(why) => {
                let hint = format!("use {} for VPS {}", route.alias, called(task));
                context.out.note(format!("warning: {why}; {hint}"));
            }
        }
    }
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    // First, so that ssh tries its key first.
    let mut text = certificate::config_lines(context, task, &words, by_account).await?;
    text.push_str(&format!("\nHost {}\n    User root\n", words.join(" ")));
    for (keyword, value) in &route.options {
        text.push_str(&format!("    {keyword} {value}\n"));
    }
    Ok(text)
}

/// A VPS's name, parsed.
enum Name {
    Own(InstanceName),
    Anothers(QualifiedName),
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let own = text.parse().map(Self::Own);
        own.or_else(|_| text.parse().map(Self::Anothers)).ok()
    }

    /// Returns the name of the VPS in ssh's configuration.
    ///
    /// # Errors
    /// The name means another computer already, or could.
    fn host(&self, prefix: Option<&str>, taken: &BTreeSet<String>) -> Result<String, String> {
        let prefix = prefix.unwrap_or_default();
        let host = match self {
            Self::Own(name) => {
                let full = format!("{prefix}{name}");
                if full.parse::<InstanceName>().is_ok_and(|name| name.is_reserved()) {
                    return Err(format!("'{full}' has another meaning to ssh"));
                }
                full
            }
            Self::Anothers(name) => {
                if is_domain(&name.owner) {
                    return Err(format!(
                        "'{name}' reads like another machine's name (choose one with \
                         `kohakuriver vps shares take {name} --as NAME`)"
                    ));
                }
                format!("{prefix}{name}")
            }
        };
        if taken.contains(&host.to_ascii_lowercase()) {
            return Err(format!(
                "'{host}' is the name of another computer in your SSH configuration"
            ));
        }
        Ok(host)
    }
}

/// Returns whether `NAME.` followed by this owner could be a domain name.
fn is_domain(owner: &str) -> bool {
    let owner = owner.to_ascii_lowercase();
    let is_country = owner.len() == 2 && owner.bytes().all(|b| b.is_ascii_alphabetic());
    owner.contains('.') || is_country || DOMAINS.contains(&owner.as_str())
}

/// Returns whether the VPS belongs to the account, or has no owner and the account can log in to it.
fn is_own(task: &Task) -> bool {
    task.owner_username.is_none() || matches!(task.access.as_deref(), None | Some("owner"))
}

/// Returns whether the VPS is the account's own or taken, and not merely visible to an operator.
fn is_entered(task: &Task) -> bool {
    let enters = matches!(task.access.as_deref(), Some("use" | "manage"));
    // An older host does not send whether a share was taken.
    let taken = task.taken.unwrap_or(task.reference.is_empty());
    vocabulary::has_ssh(task) && (is_own(task) || (enters && taken))
}

/// Reads the host names of the user's own configuration, in lower case.
fn own_hosts(path: &Path) -> BTreeSet<String> {
    hosts(&std::fs::read_to_string(path).unwrap_or_default())
}

fn hosts(config: &str) -> BTreeSet<String> {
    let mut hosts = BTreeSet::new();
    for line in config.lines() {
        let mut words =
            line.split(|c: char| c.is_whitespace() || c == '=').filter(|w| !w.is_empty());
        if !words.next().is_some_and(|word| word.eq_ignore_ascii_case("host")) {
            continue;
        }
        let plain = words.map(|word| word.trim_matches('"').to_ascii_lowercase());
        hosts.extend(plain.filter(|word| !word.contains(['*', '?', '!'])));
    }
    hosts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str, prefix: Option<&str>, taken: &[&str]) -> Result<String, String> {
        let taken = taken.iter().map(|name| (*name).to_owned()).collect();
        Name::parse(text).ok_or("no name")?.host(prefix, &taken)
    }

    #[test]
    fn names_of_other_machines_are_no_hosts_of_the_configuration() {
        assert_eq!(host("web", None, &[]), Ok("web".to_owned()));
        assert_eq!(host("web.ann", None, &[]), Ok("web.ann".to_owned()));
        for foreign in [
            "localhost",
            "none",
            "ip6-loopback",
            "github.com",
            "github.COM",
            "db.de",
            "www.example.org",
            "nas.lan",
        ] {
            assert!(host(foreign, None, &[]).is_err(), "{foreign}");
        }
        assert!(host("gitlab", None, &["gitlab"]).is_err(), "the user's own host");
        assert!(host("gitlab.Ann", None, &["gitlab.ann"]).is_err());
        assert_eq!(host("gitlab", Some("vps-"), &["gitlab"]), Ok("vps-gitlab".to_owned()));
        assert_eq!(host("localhost", Some("vps-"), &[]), Ok("vps-localhost".to_owned()));
    }

    #[test]
    fn hosts_of_the_users_configuration_are_read() {
        let config =
            "Host gitlab *.lab !x\n  HostName 10.0.0.1\nhost=\"NAS\"\n#Host no\nHostName y\n";
        assert_eq!(hosts(config).into_iter().collect::<Vec<_>>(), ["gitlab", "nas"]);
    }

    #[test]
    fn others_vpses_are_written_where_they_were_taken() {
        let task = |owner: &str, access: &str, taken| Task {
            reference: "x".to_owned(),
            owner_username: Some(owner.to_owned()),
            access: Some(access.to_owned()),
            taken,
            ssh_port: Some(9000),
            ..Task::default()
        };
        assert!(is_entered(&task("me", "owner", None)));
        assert!(is_entered(&task("ann", "use", Some(true))));
        assert!(!is_entered(&task("eve", "use", Some(false))), "not taken");
        assert!(!is_entered(&task("ann", "view", Some(true))), "nothing to enter");
        assert!(!is_entered(&task("ann", "admin", None)), "an admin has no business there");
        let nobodys = Task { owner_username: None, ..task("", "admin", None) };
        assert!(is_entered(&nobodys));
    }

    proptest! {
        #[test]
        fn no_text_of_the_host_adds_a_line_or_a_pattern(
            text in "\\PC{0,30}|[a-z]{1,5}[ \\n\"*?!,\t.%$-]{1,3}[a-z\\n ]{0,9}",
        ) {
            if let Ok(host) = host(&text, None, &[]) {
                prop_assert!(host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
            }
        }
    }
}
