//! Short-lived certificates: who may enter a VPS needs no key in it.
//!
//! For each VPS there is a key pair in the cache folder, and beside it the host's certificate for
//! it, which counts for minutes. `kohakuriver ssh` asks for one where it is needed; the settings
//! that `ssh config` writes have ssh run `kohakuriver ssh-cert` for it before every connection.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kohakuriver_api::Task;
use russh::keys::PublicKey;
use russh::keys::ssh_key::Certificate;

use super::route::{quoted, shell_word};
use crate::context::Context;
use crate::error::CommandError;
use crate::files;
use crate::keys::{self, MadeKey};

/// What is left for a connection to be made with; with less, another certificate is asked for.
const LEFT_SECONDS: u64 = 60;
/// No certificate counts for longer. One that seems to is read by a clock that is wrong.
const MOST_SECONDS: u64 = 10 * 60;

#[derive(clap::Args, Clone, Debug)]
pub struct CertificateArgs {
    /// The VPS's id
    #[arg(long)]
    id: String,
}

/// `kohakuriver ssh-cert`: what ssh runs before it connects.
pub async fn run(context: &Context, args: &CertificateArgs) -> Result<(), CommandError> {
    if args.id.is_empty() || !args.id.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CommandError::usage(format!("'{}' is not a VPS's id", args.id)));
    }
    ensure(context, &args.id).await.map(drop)
}

/// Removes all certificates of this machine and their keys: each opens a VPS for minutes yet.
pub fn forget_all() -> Result<(), CommandError> {
    let folder = files::cache()?.join("ssh");
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("vps-") {
            // What cannot be removed ends by itself, soon.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// A private key and the certificate for its public half.
#[derive(Debug)]
pub struct Pair {
    pub identity: PathBuf,
    pub certificate: PathBuf,
}

impl Pair {
    fn of(id: &str) -> Result<Self, CommandError> {
        let folder = files::cache()?.join("ssh");
        // ssh itself looks for a certificate under this name.
        let certificate = folder.join(format!("vps-{id}-cert.pub"));
        Ok(Self { identity: folder.join(format!("vps-{id}")), certificate })
    }

    /// ssh's settings for it. Naming a key turns ssh's default keys off, so these are named too.
    pub fn options(&self) -> Result<Vec<(&'static str, String)>, CommandError> {
        let mut options = vec![
            ("CertificateFile", quoted(&self.certificate)),
            ("IdentityFile", quoted(&self.identity)),
        ];
        let others = keys::for_ssh(&files::home()?.join(".ssh"), vec![self.identity.clone()]);
        // The first is the certificate's own.
        options.extend(others.iter().skip(1).map(|path| ("IdentityFile", quoted(path))));
        Ok(options)
    }

    fn public(&self) -> Option<String> {
        let line = fs::read_to_string(self.identity.with_extension("pub")).ok()?;
        self.identity.exists().then(|| line.trim().to_owned())
    }

    /// Whether it opens the VPS now, and for a while yet.
    fn is_fresh(&self, now_seconds: u64) -> bool {
        let line = fs::read_to_string(&self.certificate).unwrap_or_default();
        let subject = self.public().and_then(|line| PublicKey::from_openssh(&line).ok());
        let (Ok(certificate), Some(subject)) = (Certificate::from_openssh(&line), subject) else {
            return false;
        };
        let left = certificate.valid_before().saturating_sub(now_seconds);
        certificate.public_key() == subject.key_data()
            && certificate.valid_after() <= now_seconds
            && (LEFT_SECONDS..=MOST_SECONDS).contains(&left)
    }
}

/// The pair to log in with, where a certificate is the way: people log in to the host, or no key
/// of this person's is in the VPS.
pub async fn for_login(context: &Context, task: &Task) -> Result<Option<Pair>, CommandError> {
    let pair = Pair::of(&task.task_id)?;
    if pair.is_fresh(now_seconds()) {
        return Ok(Some(pair));
    }
    let by_account = people_log_in(context).await;
    if !by_account && has_key(context, task).await? {
        return Ok(None);
    }
    match ensure(context, &task.task_id).await {
        Ok(pair) => Ok(Some(pair)),
        // A key that only ssh knows of, such as one of its agent, may be in the VPS.
        Err(failure) if !by_account => {
            tracing::debug!(message = failure.message, "no certificate");
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// The lines of ssh's configuration that keep the certificate fresh; none where a key is enough.
pub async fn config_lines(
    context: &Context,
    task: &Task,
    names: &[&str],
    by_account: bool,
) -> Result<String, CommandError> {
    if !by_account && has_key(context, task).await? {
        return Ok(String::new());
    }
    let program = std::env::current_exe().map_err(|error| {
        CommandError::request(format!("cannot find the path of this program: {error}"))
    })?;
    let command = refresh_command(&program, &context.api.url(), &task.task_id);
    // Quoting differs between versions of ssh. Such a path has no name worth the trouble.
    if command.contains(['"', '\\']) {
        return Ok(String::new());
    }
    let mut text = format!("\nMatch originalhost {} exec \"{command}\"\n", names.join(","));
    for (keyword, value) in Pair::of(&task.task_id)?.options()? {
        text.push_str(&format!("    {keyword} {value}\n"));
    }
    Ok(text)
}

/// The command line ssh gives to the user's shell.
fn refresh_command(program: &Path, url: &str, id: &str) -> String {
    let words = [&program.to_string_lossy(), "--host", url, "ssh-cert", "--id", id];
    // ssh replaces % words before the shell sees anything.
    words.map(|word| shell_word(word).replace('%', "%%")).join(" ")
}

/// A host that cannot say is one from before there were accounts.
pub async fn people_log_in(context: &Context) -> bool {
    context.api.people_log_in().await.unwrap_or_else(|failure| {
        tracing::debug!(message = failure.message, "whether people log in is not known");
        false
    })
}

/// Whether ssh finds a key by itself that opens the VPS.
async fn has_key(context: &Context, task: &Task) -> Result<bool, CommandError> {
    let folder = files::home()?.join(".ssh");
    if keys::made_for(&folder, &task.task_id).exists() {
        return Ok(true);
    }
    let mine = keys::discover(&folder);
    if mine.is_empty() {
        return Ok(false);
    }
    let Ok(known) = context.api.ssh_keys(&task.task_id).await else { return Ok(false) };
    Ok(known.iter().any(|key| mine.iter().any(|line| same_key(line, &key.public_key))))
}

fn same_key(one: &str, other: &str) -> bool {
    let words = |line: &str| line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    words(one) == words(other)
}

/// Has the host sign the VPS's key again, unless its certificate is fresh. The key itself is made
/// once, and leaves this machine as little as any other.
async fn ensure(context: &Context, id: &str) -> Result<Pair, CommandError> {
    let pair = Pair::of(id)?;
    let cannot = files::unwritable;
    let folder = pair.identity.parent().unwrap_or(Path::new("."));
    files::private_folder(folder).map_err(|error| cannot(folder, &error))?;
    // Several at once, as editors do it, ask one after another, and all but the first not at all.
    let path = pair.identity.with_extension("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| cannot(&path, &error))?;
    lock.lock().map_err(|error| cannot(&path, &error))?;
    if pair.is_fresh(now_seconds()) {
        return Ok(pair);
    }
    let public = match pair.public() {
        Some(public) => public,
        None => {
            // What is left of a pair that was half made, or half removed.
            let _ = fs::remove_file(&pair.identity);
            let _ = fs::remove_file(pair.identity.with_extension("pub"));
            let made = MadeKey::create(folder, Some(&pair.identity))?;
            let public = made.public.clone();
            made.keep();
            public
        }
    };
    let answer = context.api.ssh_certificate(id, public).await?;
    if let Some(warning) = &answer.warning {
        context.out.note(warning);
    }
    // Parsed and printed again, so that a host cannot smuggle in a second line.
    let line = Certificate::from_openssh(&answer.certificate)
        .and_then(|certificate| certificate.to_openssh())
        .map_err(|_| {
            CommandError::request("the host answers with a certificate that is none")
                .hint("see `kohakuriver version`: the two sides may be of different versions")
        })?;
    files::replace(&pair.certificate, 0o600, format!("{line}\n").as_bytes())
        .map_err(|error| cannot(&pair.certificate, &error))?;
    Ok(pair)
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_key::certificate::Builder;
    use russh::keys::{Algorithm, PrivateKey};

    use super::*;

    const NOW: u64 = 1_790_000_000;

    fn pair(folder: &Path) -> (Pair, PublicKey) {
        let identity = folder.join("vps-7");
        let made = MadeKey::create(folder, Some(&identity)).unwrap();
        let subject = PublicKey::from_openssh(&made.public).unwrap();
        made.keep();
        (Pair { identity, certificate: folder.join("vps-7-cert.pub") }, subject)
    }

    fn sign(pair: &Pair, subject: &PublicKey, until: u64) {
        let ca = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        let mut builder =
            Builder::new([7; 16], subject.key_data().clone(), NOW - 300, until).unwrap();
        builder.valid_principal("vps-7").unwrap();
        let line = builder.sign(&ca).unwrap().to_openssh().unwrap();
        fs::write(&pair.certificate, line).unwrap();
    }

    #[test]
    fn a_certificate_is_used_again_while_a_minute_of_it_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (pair, subject) = pair(folder.path());
        assert!(!pair.is_fresh(NOW), "there is none");
        for (until, fresh) in
            [(NOW + 300, true), (NOW + 60, true), (NOW + 59, false), (NOW - 1, false)]
        {
            sign(&pair, &subject, until);
            assert_eq!(pair.is_fresh(NOW), fresh, "{until}");
        }
        // By a clock that is an hour behind.
        sign(&pair, &subject, NOW + 3900);
        assert!(!pair.is_fresh(NOW));
    }

    #[test]
    fn a_certificate_of_another_key_or_without_its_key_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (pair, subject) = pair(folder.path());
        let other = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        sign(&pair, other.public_key(), NOW + 300);
        assert!(!pair.is_fresh(NOW));
        sign(&pair, &subject, NOW + 300);
        assert!(pair.is_fresh(NOW));
        fs::remove_file(&pair.identity).unwrap();
        assert!(!pair.is_fresh(NOW));
    }

    #[test]
    fn a_comment_makes_no_other_key() {
        assert!(same_key("ssh-ed25519 AAAA me@pc", "ssh-ed25519 AAAA"));
        assert!(!same_key("ssh-ed25519 AAAA", "ssh-ed25519 AAAB"));
    }
}
