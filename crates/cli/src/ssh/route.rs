//! ssh's options for one VPS, shared by a direct login and `ssh config`.

use std::path::{Path, PathBuf};

use kohakuriver_api::Task;
use kohakuriver_model::InstanceId;

use super::known_hosts;
use super::proxy::Gate;
use crate::context::Context;
use crate::error::CommandError;
use crate::files;
use crate::keys;

/// ssh's options for a VPS.
#[derive(Debug)]
pub struct Route {
    /// The VPS's permanent name to ssh, independent of addresses and ports.
    pub alias: String,
    /// Pairs of `Keyword` and value, quoted for the configuration file.
    pub options: Vec<(&'static str, String)>,
}

pub fn alias(id: InstanceId) -> String {
    format!("kohakuriver-vps-{id}")
}

/// Returns the VPS's id, which becomes part of ssh's configuration and of a shell's command line.
///
/// # Errors
/// The host sent an invalid id.
pub fn task_id(task: &Task) -> Result<InstanceId, CommandError> {
    let id = task.task_id.parse::<InstanceId>().ok().filter(|id| id.to_string() == task.task_id);
    id.ok_or_else(|| {
        CommandError::request("the host sent a VPS with an invalid id")
            .hint("see `kohakuriver version`: client and host may have different versions")
    })
}

impl Route {
    /// Pins the VPS's host key and returns the options to connect to it.
    pub fn to(context: &Context, task: &Task, proxy_port: u16) -> Result<Self, CommandError> {
        let id = task_id(task)?;
        let alias = alias(id);
        let known_hosts = files::cache()?.join("known_hosts");
        let pinned = known_hosts::pin(&known_hosts, &alias, task.ssh_host_key.as_deref())?;
        let program = std::env::current_exe().map_err(|error| {
            CommandError::request(format!("cannot find the path of this program: {error}"))
        })?;
        let gate = Gate::new(context, proxy_port)?;
        let by = if gate.gives_sockets() {
            By::Gateway { host: context.api.host(), port: proxy_port }
        } else {
            By::Api { url: context.api.url() }
        };
        let proxy = proxy_command(&program, &by, &task.task_id);
        let mut options = vec![("HostKeyAlias", alias.clone()), ("ProxyCommand", proxy)];
        if gate.gives_sockets() {
            // ssh takes over the open socket instead of exchanging the bytes through a pipe.
            options.push(("ProxyUseFdpass", "yes".to_owned()));
        }
        options.extend([
            ("UserKnownHostsFile", quoted(&known_hosts)),
            // The host knows the key over the link that created the VPS. Without one, the first key
            // seen is trusted, and only that from then on.
            ("StrictHostKeyChecking", if pinned { "yes" } else { "accept-new" }.to_owned()),
            ("CheckHostIP", "no".to_owned()),
            ("UpdateHostKeys", "no".to_owned()),
            ("HashKnownHosts", "no".to_owned()),
        ]);
        for key in identities(&files::home()?.join(".ssh"), &task.task_id) {
            options.push(("IdentityFile", quoted(&key)));
        }
        Ok(Self { alias, options })
    }
}

/// Returns the key generated for the VPS, and those that ssh would not find by itself.
fn identities(ssh_folder: &Path, id: &str) -> Vec<PathBuf> {
    let made = keys::made_for(ssh_folder, id);
    keys::for_ssh(ssh_folder, made.exists().then_some(made).into_iter().collect())
}

/// The transport of the proxy command, as chosen by [`Gate`].
enum By<'a> {
    Gateway { host: &'a str, port: u16 },
    Api { url: String },
}

/// Formats the command line that ssh passes to the user's shell.
fn proxy_command(program: &Path, by: &By<'_>, id: &str) -> String {
    let program = program.to_string_lossy();
    let mut words = vec![program.as_ref(), "--host"];
    let number;
    match by {
        By::Gateway { host, port } => {
            number = port.to_string();
            words.extend([host, "ssh-proxy", "--pass-socket", "--proxy-port", &number]);
        }
        By::Api { url } => words.extend([url, "ssh-proxy"]),
    }
    words.extend(["--id", id]);
    // ssh expands % tokens before the shell parses the line.
    words.into_iter().map(|word| shell_word(word).replace('%', "%%")).collect::<Vec<_>>().join(" ")
}

/// Quotes text as a single word for a POSIX shell.
pub fn shell_word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b':');
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Quotes a file name for ssh's configuration parser.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%");
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(host: &str, port: u16) -> By<'_> {
        By::Gateway { host, port }
    }

    #[test]
    fn proxy_command_by_https_has_the_whole_address() {
        let by = By::Api { url: "https://[::1]:8000".to_owned() };
        assert_eq!(
            proxy_command(Path::new("/usr/bin/kohakuriver"), &by, "7"),
            "/usr/bin/kohakuriver --host 'https://[::1]:8000' ssh-proxy --id 7"
        );
    }

    #[test]
    fn proxy_command_survives_ssh_and_the_shell() {
        let plain = proxy_command(Path::new("/usr/bin/kohakuriver"), &gateway("::1", 8002), "7");
        assert_eq!(
            plain,
            "/usr/bin/kohakuriver --host ::1 ssh-proxy --pass-socket --proxy-port 8002 --id 7"
        );
        let odd = proxy_command(Path::new("/a b/100%/it's"), &gateway("h", 1), "7");
        assert!(odd.starts_with("'/a b/100%%/it'\\''s' --host h "), "{odd}");
    }

    #[test]
    fn quoted_words_survive_the_shell() {
        for text in ["/a b/c", "it's", "$(reboot)", "a;b", "`x`", "\"", "\\", "*"] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", shell_word(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }

    #[test]
    fn invalid_id_from_the_host_is_rejected() {
        let of = |id: &str| task_id(&Task { task_id: id.to_owned(), ..Task::default() });
        assert_eq!(of("7398213345412345856").unwrap().to_string(), "7398213345412345856");
        for bad in ["", "7\n    ProxyCommand touch PWNED", "../x", "07", "+7", "$(x)"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
