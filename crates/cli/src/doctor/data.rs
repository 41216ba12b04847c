//! Checks of the data directory of this machine's host or runner.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kohakuriver_model::Memory;
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use tokio::time::timeout;

use super::finding::Finding;
use super::here::open_to_others;
use super::host::LIMIT;
use crate::context::Context;

const HOST_FILES: &str = "host's files";
/// The free space below which nothing works reliably.
const LEAST_FREE: u64 = 1 << 30;

/// Returns the data directory, which contains `host/`, `runner/` and `shared/`.
pub fn directory(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(|| {
        if Uid::effective().is_root() {
            return PathBuf::from("/var/lib/kohakuriver");
        }
        let home = std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
        home.unwrap_or_else(|| PathBuf::from(".")).join("kohakuriver")
    })
}

/// Returns the host's data directory, where the host runs on this machine and reports it.
pub async fn told(context: &Context) -> Option<PathBuf> {
    // An answer, or the lack of one, is a finding of the host's own check.
    let probe = timeout(LIMIT, context.api.probe()).await.ok()?.ok()?;
    if !probe.address.ip().is_loopback() {
        return None;
    }
    let health = timeout(LIMIT, context.api.health()).await.ok()?.ok()?;
    Some(PathBuf::from(health.data_dir?).parent()?.to_owned())
}

/// Selects the data directory to inspect, and warns where it may be another cluster's.
pub fn choose(
    given: Option<PathBuf>,
    told: Option<PathBuf>,
    place: &str,
) -> (PathBuf, Option<Finding>) {
    match (given, told) {
        (Some(given), Some(told)) if !is_same(&given, &told) => {
            let found = format!(
                "{} is not of the host at {place}, whose data is in {}",
                given.display(),
                told.display()
            );
            let advice = format!("kohakuriver doctor --data-dir {}", told.display());
            (given, Some(Finding::warn(HOST_FILES, found, advice)))
        }
        (Some(given), _) => (given, None),
        (None, Some(told)) => (told, None),
        (None, None) => {
            let data = directory(None);
            let found = format!(
                "{} was looked at; the host at {place} does not tell that its data is there",
                data.display()
            );
            let advice = "log in as an admin, or name the folder with --data-dir";
            (data, Some(Finding::warn(HOST_FILES, found, advice)))
        }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

/// Returns whether a runner of this machine has joined a cluster.
pub fn is_node(data: &Path) -> bool {
    data.join("runner/identity.json").exists()
}

pub fn inspect(data: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let host = data.join("host");
    if host.exists() {
        findings.push(host_files(&host));
    }
    let identity = data.join("runner/identity.json");
    if identity.exists() {
        let shown = identity.display();
        findings.push(match open_to_others(&identity) {
            None => Finding::ok("node's key", format!("{shown} is safe from others")),
            Some(mode) => Finding::bad(
                "node's key",
                format!("others can read {shown} (mode {mode:03o})"),
                format!(
                    "chmod 600 {shown}; if they did: kohakuriver node remove, and join it again"
                ),
            ),
        });
    }
    findings.extend(damaged_records(&data.join("runner")));
    if !findings.is_empty() {
        findings.extend(space(data));
    }
    findings
}

/// Reports each instance record that cannot be read.
fn damaged_records(runner: &Path) -> Vec<Finding> {
    const CHECK: &str = "node's records";
    let is_json = |path: &Path| {
        fs::read(path).is_ok_and(|text| serde_json::from_slice::<serde_json::Value>(&text).is_ok())
    };
    let mut findings = Vec::new();
    for (folder, name) in [("instances", "order.json"), ("vm/disks", "machine.json")] {
        for entry in fs::read_dir(runner.join(folder)).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let record = entry.path().join(name);
            let aside = entry.path().join("order.json.damaged");
            if record.exists() && !is_json(&record) {
                findings.push(Finding::bad(
                    CHECK,
                    format!("{} is damaged: VPS {id} is not reachable", record.display()),
                    format!("see kohakuriver vps status {id}; vps delete {id} removes it"),
                ));
            } else if name == "order.json" && aside.exists() {
                findings.push(Finding::warn(
                    CHECK,
                    format!("the record of VPS {id} was damaged and made anew"),
                    format!("check the disk of this machine, then: rm {}", aside.display()),
                ));
            }
        }
    }
    findings
}

/// Checks the host's files: their reader has the cluster admin's rights.
fn host_files(host: &Path) -> Finding {
    let shown = host.display();
    let mode = fs::metadata(host).map_or(0, |kept| kept.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        return Finding::bad(
            HOST_FILES,
            format!("others can enter {shown} (mode {mode:03o})"),
            format!("chmod 700 {shown}"),
        );
    }
    let entries = match fs::read_dir(host) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Finding::warn(HOST_FILES, format!("{shown} was not checked"), "run it as root");
        }
        Err(error) => {
            return Finding::bad(HOST_FILES, format!("{shown}: {error}"), "check its disk");
        }
    };
    let open = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.path())
        .find(|path| open_to_others(path).is_some());
    match open {
        None => Finding::ok(HOST_FILES, format!("{shown} is safe from others")),
        // Nobody gets to it through the folder, until somebody opens that or copies the file.
        Some(path) => Finding::warn(
            HOST_FILES,
            format!("{} would be readable by others outside of its folder", path.display()),
            format!("chmod 600 {}", path.display()),
        ),
    }
}

fn space(data: &Path) -> Option<Finding> {
    let disk = statvfs(data).ok()?;
    let (free, all) = (disk.blocks_available(), disk.blocks());
    let bytes = free.saturating_mul(disk.fragment_size());
    Some(judge_space(data, bytes, free.saturating_mul(100).checked_div(all).unwrap_or(0)))
}

fn judge_space(data: &Path, bytes: u64, percent: u64) -> Finding {
    let found = format!("{} free at {} ({percent} %)", Memory::from_bytes(bytes), data.display());
    let advice = "`kohakuriver vps list -a` and `docker system df` show what takes it";
    match (bytes < LEAST_FREE, percent < 10) {
        (true, _) => Finding::bad("disk space", found, advice),
        (false, true) => Finding::warn("disk space", found, advice),
        (false, false) => Finding::ok("disk space", found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn files_of_host_and_node_are_private() {
        let data = tempfile::tempdir().unwrap();
        assert!(inspect(data.path()).is_empty(), "no host, no node");
        let (host, runner) = (data.path().join("host"), data.path().join("runner"));
        fs::create_dir(&host).unwrap();
        fs::create_dir(&runner).unwrap();
        let (database, identity) = (host.join("host.db"), runner.join("identity.json"));
        fs::write(&database, "").unwrap();
        fs::write(&identity, "").unwrap();
        let states = |modes: [u32; 3]| {
            for (path, mode) in [&host, &database, &identity].into_iter().zip(modes) {
                set(path, mode);
            }
            inspect(data.path()).iter().take(2).map(|found| found.state).collect::<Vec<_>>()
        };
        assert_eq!(states([0o700, 0o600, 0o600]), [State::Ok, State::Ok]);
        assert_eq!(states([0o755, 0o600, 0o600]), [State::Bad, State::Ok]);
        assert_eq!(states([0o700, 0o644, 0o600]), [State::Warn, State::Ok]);
        assert_eq!(states([0o700, 0o600, 0o644]), [State::Ok, State::Bad]);
        assert!(is_node(data.path()));
    }

    #[test]
    fn data_directory_of_another_host_is_reported() {
        let path = |text: &str| Some(PathBuf::from(text));
        let of = |given, told| {
            let (data, warning) = choose(given, told, "127.0.0.1:8000");
            (data, warning.map(|finding| finding.found))
        };
        assert_eq!(of(None, path("/srv/river")), ("/srv/river".into(), None));
        assert_eq!(of(path("/srv/river"), path("/srv/./river")), ("/srv/river".into(), None));
        assert_eq!(of(path("/srv/river"), None), ("/srv/river".into(), None));
        let (data, warning) = of(path("/srv/other"), path("/srv/river"));
        assert!(data == Path::new("/srv/other") && warning.unwrap().contains("/srv/river"));
        let (data, warning) = of(None, None);
        assert!(data == directory(None) && warning.unwrap().contains("does not tell"));
    }

    #[test]
    fn damaged_records_are_reported_with_their_vps() {
        let data = tempfile::tempdir().unwrap();
        let runner = data.path().join("runner");
        let files = [
            ("instances/1/order.json", "{}"),
            ("instances/2/order.json", "{"),
            ("instances/3/order.json", "{}"),
            ("instances/3/order.json.damaged", "{"),
            ("vm/disks/4/machine.json", ""),
        ];
        for (name, text) in files {
            fs::create_dir_all(runner.join(name).parent().unwrap()).unwrap();
            fs::write(runner.join(name), text).unwrap();
        }
        let mut found: Vec<_> = damaged_records(&runner)
            .into_iter()
            .map(|finding| (finding.state, finding.found))
            .collect();
        found.sort_by(|a, b| a.1.cmp(&b.1));
        let states: Vec<_> = found.iter().map(|(state, _)| *state).collect();
        assert_eq!(states, [State::Bad, State::Bad, State::Warn], "{found:?}");
        assert!(found[0].1.contains("VPS 2") && found[1].1.contains("VPS 4"), "{found:?}");
        assert!(found[2].1.contains("VPS 3"), "{found:?}");
    }

    #[test]
    fn a_disk_is_full_before_it_is() {
        let state = |bytes, percent| judge_space(Path::new("/"), bytes, percent).state;
        assert_eq!(state(500 << 30, 50), State::Ok);
        assert_eq!(state(500 << 30, 9), State::Warn);
        assert_eq!(state(500 << 20, 50), State::Bad);
    }
}
