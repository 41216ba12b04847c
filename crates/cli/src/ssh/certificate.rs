//! Short-lived certificates, with which an account can log in to a VPS that has no key of it.
//!
//! The cache folder holds a key pair for each VPS, and the host's certificate for it, which is valid
//! for minutes. `kohakuriver ssh` requests one when needed; the configuration that `ssh config` writes
//! makes ssh run `kohakuriver ssh-cert` before every connection.

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

/// Minimum remaining lifetime for a new connection; below it, another certificate is requested.
const LEFT_SECONDS: u64 = 60;
/// Maximum lifetime of a certificate. A longer one means that the local clock is wrong.
const MOST_SECONDS: u64 = 10 * 60;

#[derive(clap::Args, Clone, Debug)]
pub struct CertificateArgs {
    /// Id of the VPS.
    #[arg(long)]
    id: String,
}

/// Runs `kohakuriver ssh-cert`, which ssh runs before it connects.
pub async fn run(context: &Context, args: &CertificateArgs) -> Result<(), CommandError> {
    if args.id.is_empty() || !args.id.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CommandError::usage(format!("'{}' is not a VPS's id", args.id)));
    }
    ensure(context, &args.id).await.map(drop)
}

/// Removes all local certificates and their keys, because each is still valid for minutes.
pub fn forget_all() -> Result<(), CommandError> {
    let folder = files::cache()?.join("ssh");
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("vps-") {
            // A certificate that cannot be removed expires soon.
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
        // ssh itself searches for a certificate under this name.
        let certificate = folder.join(format!("vps-{id}-cert.pub"));
        Ok(Self { identity: folder.join(format!("vps-{id}")), certificate })
    }

    /// Returns ssh's options for the pair. A key option disables ssh's default keys, so these are listed
    /// too.
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

    /// Returns whether the certificate is valid now and for the minimum remaining lifetime.
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

/// Returns the pair to log in with, if a certificate is needed: the host has accounts, or the VPS has
/// no key of this user.
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
        // The VPS may have a key that only ssh knows, such as one of its agent.
        Err(failure) if !by_account => {
            tracing::debug!(message = failure.message, "no certificate");
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// Returns the configuration lines that renew the certificate; none if a key suffices.
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
    // Quoting differs between versions of ssh, so such a path is not supported.
    if command.contains(['"', '\\']) {
        return Ok(String::new());
    }
    let mut text = format!("\nMatch originalhost {} exec \"{command}\"\n", names.join(","));
    for (keyword, value) in Pair::of(&task.task_id)?.options()? {
        text.push_str(&format!("    {keyword} {value}\n"));
    }
    Ok(text)
}

/// Formats the command line that ssh passes to the user's shell.
fn refresh_command(program: &Path, url: &str, id: &str) -> String {
    let words = [&program.to_string_lossy(), "--host", url, "ssh-cert", "--id", id];
    // ssh expands % tokens before the shell parses the line.
    words.map(|word| shell_word(word).replace('%', "%%")).join(" ")
}

/// Returns whether the host has accounts; an error means a host version without them.
pub async fn people_log_in(context: &Context) -> bool {
    context.api.people_log_in().await.unwrap_or_else(|failure| {
        tracing::debug!(message = failure.message, "cannot query whether the host has accounts");
        false
    })
}

/// Returns whether one of ssh's default keys can log in to the VPS.
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

/// Requests a new certificate for the VPS's key, unless the present one is fresh. The key is generated
/// once, and its private half never leaves this computer.
async fn ensure(context: &Context, id: &str) -> Result<Pair, CommandError> {
    let pair = Pair::of(id)?;
    let cannot = files::unwritable;
    let folder = pair.identity.parent().unwrap_or(Path::new("."));
    files::private_folder(folder).map_err(|error| cannot(folder, &error))?;
    // Editors open several connections at once: a lock makes only the first one request.
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
            // Leftovers of a pair that was only partly created or removed.
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
    // Parsed and formatted again, so that a host cannot inject a second line.
    let line = Certificate::from_openssh(&answer.certificate)
        .and_then(|certificate| certificate.to_openssh())
        .map_err(|_| {
            CommandError::request("the host sent an invalid certificate")
                .hint("see `kohakuriver version`: client and host may have different versions")
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
    fn certificate_is_reused_while_a_minute_remains() {
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
    fn certificate_without_its_key_is_not_used() {
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
    fn comment_does_not_change_a_key() {
        assert!(same_key("ssh-ed25519 AAAA me@pc", "ssh-ed25519 AAAA"));
        assert!(!same_key("ssh-ed25519 AAAA", "ssh-ed25519 AAAB"));
    }
}
