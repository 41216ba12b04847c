//! Makes a host the default in the configuration file, and preserves its other content and
//! comments.

use std::io::ErrorKind;
use std::path::Path;

use crate::error::CommandError;
use crate::{files, settings};

/// The mode of the configuration file: it contains no secrets, but other users need not change it.
const MODE: u32 = 0o600;

pub fn set_host(url: &str) -> Result<(), CommandError> {
    let path = settings::config_path(&|name| std::env::var(name).ok())
        .ok_or_else(super::place::no_folder)?;
    write(&path, url)
}

fn write(path: &Path, url: &str) -> Result<(), CommandError> {
    let before = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(files::unreadable(path, &error)),
    };
    let after = with_host(&before, url);
    if after == before {
        return Ok(());
    }
    path.parent()
        .map_or(Ok(()), files::private_folder)
        .and_then(|()| files::replace(path, MODE, after.as_bytes()))
        .map_err(|error| files::unwritable(path, &error))
}

/// Removes the port: the URL contains it, and the existing value may belong to another host.
fn with_host(text: &str, url: &str) -> String {
    let host = format!("host = \"{url}\"");
    let mut written = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.split_once('=').map(|(key, _)| key.trim()) {
            Some("host") if !written => {
                written = true;
                lines.push(host.as_str());
            }
            Some("host" | "port") => {}
            Some(_) | None => lines.push(line),
        }
    }
    if !written {
        lines.insert(0, &host);
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_host_is_another_and_the_rest_stays() {
        let text = "# our lab\nhost = \"old\"\nport = 9000\nssh_proxy_port = 9002 # the gateway\n";
        assert_eq!(
            with_host(text, "https://river.lab:8000"),
            "# our lab\nhost = \"https://river.lab:8000\"\nssh_proxy_port = 9002 # the gateway\n"
        );
        assert_eq!(with_host("", "https://a:1"), "host = \"https://a:1\"\n");
        assert_eq!(
            with_host("ssh_proxy_port = 1", "https://a:1"),
            "host = \"https://a:1\"\nssh_proxy_port = 1\n"
        );
    }

    #[test]
    fn a_new_file_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kohakuriver/config.toml");
        write(&path, "https://a:1").unwrap();
        write(&path, "https://b:2").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "host = \"https://b:2\"\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
