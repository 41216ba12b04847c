//! `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname` of a container.
//!
//! The engine keeps them beside the container's disk and makes them anew at every start, so edits
//! would be lost. Ours are files of the instance on the node, mounted in their places:
//!
//! ```text
//!  instances/<id>/own/{hosts,resolv.conf,hostname}  mounted into the container, which can write them
//!                     made.json                     their contents without edits in the container
//!  /.kohakuriver/kept/ on the disk                  the same four, put there for each snapshot
//! ```
//!
//! Before a start, what changed on our side since the last one (the node's nameservers, the name of a
//! copy) is merged into them. They change only while nothing runs, each by a rename, and the note comes
//! last: a crash in between is a merge that is done again, which changes nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::merge::merge;
use kohakuriver_durable as durable;

mod merge;
pub mod saved;

/// File, and where the container has it.
pub const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")];
const NOTE: &str = "made.json";
/// A longer file is left unchanged, and is in no snapshot.
const LONGEST: u64 = 2 << 20;
/// Where a machine has its own name, whatever its address is today.
const OWN_ADDRESS: &str = "127.0.1.1";

/// The unedited contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Whose they are.
    task: String,
    hosts: String,
    resolv_conf: String,
    hostname: String,
}

impl Made {
    /// `node`: the node's own `resolv.conf`, for where names are searched.
    pub fn new(task: &str, hostname: &str, servers: &[Ipv4Addr], node: &str) -> Self {
        let servers = servers.iter().map(|server| format!("nameserver {server}\n"));
        let others = node.lines().filter(|line| {
            let word = line.split_ascii_whitespace().next();
            matches!(word, Some("search" | "domain" | "options"))
        });
        Self {
            task: task.to_owned(),
            hosts: format!(
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\n\
                 ff02::2\tip6-allrouters\n{OWN_ADDRESS}\t{hostname}\n"
            ),
            resolv_conf: servers.chain(others.map(|line| format!("{line}\n"))).collect(),
            hostname: format!("{hostname}\n"),
        }
    }

    fn of(&self, file: &str) -> &str {
        match file {
            "hosts" => &self.hosts,
            "resolv.conf" => &self.resolv_conf,
            _ => &self.hostname,
        }
    }
}

/// The files of one instance.
#[derive(Clone, Debug)]
pub struct OwnFiles {
    dir: PathBuf,
}

impl OwnFiles {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Those of a new disk, in place of whatever an older one had.
    pub fn begin(&self, made: &Made) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.refresh(made)
    }

    /// Merges what is new on our side. Nothing may run that has the files mounted.
    pub fn refresh(&self, made: &Made) -> io::Result<()> {
        durable::private_dir(&self.dir)?;
        let note = self.path(NOTE);
        let before: Made = fs::read(&note)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        for (file, _) in FILES {
            let path = self.path(file);
            let after = made.of(file);
            let merged = match read(&path)? {
                Content::Text(now) => {
                    let merged = merge(before.of(file), &now, after);
                    if merged == now {
                        continue;
                    }
                    merged
                }
                Content::Absent => after.to_owned(),
                Content::Other => continue,
            };
            durable::write(&path, merged.as_bytes(), 0o644)?;
        }
        if before == *made {
            return Ok(());
        }
        durable::write(&note, &serde_json::to_vec(made).unwrap_or_default(), 0o600)
    }

    /// Adopts the files of a snapshot, under the name of this instance.
    fn adopt(&self, kept: &[(String, Vec<u8>)], made: &Made) -> io::Result<()> {
        let content = |name: &str| {
            let found = kept.iter().find(|(file, _)| file == name)?;
            String::from_utf8(found.1.clone()).ok()
        };
        let before: Made =
            content(NOTE).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let is_copy = before.task != made.task;
        for (file, _) in FILES {
            let Some(now) = content(file) else { continue };
            let after = made.of(file);
            let text = match file {
                "hostname" if is_copy => after.to_owned(),
                "hosts" if is_copy => with_own_name(&merge(before.of(file), &now, after), after),
                _ => merge(before.of(file), &now, after),
            };
            durable::write(&self.path(file), text.as_bytes(), 0o644)?;
        }
        Ok(())
    }

    /// Names and contents, for a snapshot.
    fn contents(&self) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
        let mut contents = Vec::new();
        for name in FILES.map(|(file, _)| file).into_iter().chain([NOTE]) {
            match read(&self.path(name))? {
                Content::Text(text) => contents.push((name, text.into_bytes())),
                Content::Absent => {}
                Content::Other => {
                    let path = self.path(name).display().to_string();
                    return Err(io::Error::other(format!(
                        "{path} is not a text file of less than 2 MiB"
                    )));
                }
            }
        }
        Ok(contents)
    }
}

/// A copy has no line with the name of the instance that it was made of.
fn with_own_name(hosts: &str, made: &str) -> String {
    let is_own = |line: &&str| line.split_ascii_whitespace().next() == Some(OWN_ADDRESS);
    let Some(own) = made.lines().find(is_own) else { return hosts.to_owned() };
    let others = hosts.lines().filter(|line| !is_own(line));
    others.chain([own]).map(|line| format!("{line}\n")).collect()
}

enum Content {
    Text(String),
    Absent,
    /// Too long, or not text: the container's own business.
    Other,
}

fn read(path: &Path) -> io::Result<Content> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let file: File = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Absent),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    let is_short = bytes.len() as u64 <= LONGEST;
    Ok(String::from_utf8(bytes).ok().filter(|_| is_short).map_or(Content::Other, Content::Text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(task: &str, name: &str, server: u8) -> Made {
        Made::new(task, name, &[Ipv4Addr::new(10, 0, 0, server)], "search lab\nnameserver ::1\n")
    }

    fn append(own: &OwnFiles, file: &str, line: &str) {
        let text = fs::read_to_string(own.path(file)).unwrap() + line + "\n";
        fs::write(own.path(file), text).unwrap();
    }

    #[test]
    fn edits_outlive_starts_and_changed_nameservers() {
        let dir = tempfile::tempdir().unwrap();
        let own = OwnFiles::new(dir.path().join("own"));
        own.begin(&made("7", "web", 1)).unwrap();
        append(&own, "hosts", "10.7.7.7 mine");
        append(&own, "resolv.conf", "options timeout:1");
        fs::write(own.path("hostname"), "my\n").unwrap();
        let text = |file: &str| fs::read_to_string(own.path(file)).unwrap();
        for _ in 0..2 {
            own.refresh(&made("7", "web", 2)).unwrap();
            assert!(
                text("hosts").ends_with("127.0.1.1\tweb\n10.7.7.7 mine\n"),
                "{}",
                text("hosts")
            );
            let resolver = "nameserver 10.0.0.2\nsearch lab\noptions timeout:1\n";
            assert_eq!(
                (text("resolv.conf").as_str(), text("hostname").as_str()),
                (resolver, "my\n")
            );
        }
        fs::write(own.path("hosts"), [0xff, 0]).unwrap();
        own.refresh(&made("7", "web", 3)).unwrap();
        assert_eq!(fs::read(own.path("hosts")).unwrap(), [0xff, 0]);
        own.begin(&made("7", "web", 3)).unwrap();
        assert_eq!(text("hostname"), "web\n", "another disk has none of it");
    }

    #[test]
    fn copy_has_edits_and_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let (web, copy) =
            (OwnFiles::new(dir.path().join("web")), OwnFiles::new(dir.path().join("copy")));
        web.begin(&made("7", "web", 1)).unwrap();
        append(&web, "hosts", "10.7.7.7 mine");
        fs::write(web.path("hostname"), "my\n").unwrap();
        let kept: Vec<(String, Vec<u8>)> = web
            .contents()
            .unwrap()
            .into_iter()
            .map(|(name, text)| (name.to_owned(), text))
            .collect();
        assert_eq!(kept.len(), 4);
        let text = |own: &OwnFiles, file: &str| fs::read_to_string(own.path(file)).unwrap();
        copy.begin(&made("8", "copy", 1)).unwrap();
        copy.adopt(&kept, &made("8", "copy", 1)).unwrap();
        assert_eq!(text(&copy, "hostname"), "copy\n");
        let hosts = text(&copy, "hosts");
        assert!(
            hosts.contains("10.7.7.7 mine\n") && hosts.contains("127.0.1.1\tcopy\n"),
            "{hosts}"
        );
        assert!(!hosts.contains("web"), "{hosts}");
        // Its own snapshot brings back all of it.
        web.begin(&made("7", "web", 1)).unwrap();
        web.adopt(&kept, &made("7", "web", 1)).unwrap();
        assert_eq!(text(&web, "hostname"), "my\n");
    }
}
