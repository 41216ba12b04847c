//! Processes of a container that its engine does not know to be running.
//!
//! An engine that is killed in the middle of a start can leave the container's first process behind,
//! or only the shim that was about to make it: the engine that comes next takes the container for
//! stopped, and refuses to start it because its task "already exists". Ending those processes lets
//! containerd clear the task away.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock;

/// Whether a refused start is of this kind. After the process has ended, the directory that its shim
/// had is there until containerd has cleared it away too.
pub fn is_left_behind(reason: &str) -> bool {
    let task = reason.contains("task") && reason.contains("already exists");
    task || (reason.contains("failed to start shim") && reason.contains("file exists"))
}

/// Ends every process in the control group of a container, and its shim. The id is the engine's own, 64
/// hexadecimal digits, so nothing else can be meant. Only for a container that the engine has
/// just shown as not running.
pub fn end(container_id: &str) -> usize {
    if container_id.len() != 64 || !container_id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return 0;
    }
    let found = processes_of(Path::new("/proc"), container_id);
    for pid in &found {
        tracing::warn!(pid, container_id, "ending a process that a dead engine left behind");
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    found.len()
}

/// Moves aside the directory of a task that containerd has forgotten, which keeps it from making the
/// task anew for as long as it runs. It removes what was moved when it starts the next time, with
/// whatever is mounted there, which is why nothing is removed here.
pub fn move_aside(reason: &str, container_id: &str) -> bool {
    let Some(dir) = task_dir(reason, container_id) else { return false };
    let aside = dir.with_file_name(format!("{container_id}-left-{}", clock::now_ms()));
    match fs::rename(dir, &aside) {
        Ok(()) => {
            tracing::warn!(aside = %aside.display(), "moved aside what a dead engine left of a task");
            true
        }
        Err(error) => {
            tracing::warn!(%error, dir = %dir.display(), "what a dead engine left of a task stays");
            false
        }
    }
}

/// The directory that the refusal names, if it is that of this container's task.
fn task_dir<'a>(reason: &'a str, container_id: &str) -> Option<&'a Path> {
    let (_, rest) = reason.split_once("mkdir ")?;
    let dir = Path::new(rest.split_once(": file exists")?.0);
    let name = |dir: &'a Path| dir.file_name()?.to_str();
    let namespace = dir.parent()?;
    let is_its_task = container_id.len() == 64
        && dir.is_absolute()
        && name(dir) == Some(container_id)
        && name(namespace) == Some("moby")
        && name(namespace.parent()?) == Some("io.containerd.runtime.v2.task");
    is_its_task.then_some(dir)
}

fn processes_of(proc: &Path, container_id: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let dir = proc.join(pid.to_string());
            let text = fs::read_to_string(dir.join("cgroup"));
            // `/docker/<id>` or `.../docker-<id>.scope`
            text.is_ok_and(|text| text.lines().any(|line| line.contains(container_id)))
                || is_shim(&fs::read(dir.join("cmdline")).unwrap_or_default(), container_id)
        })
        .collect()
}

/// `containerd-shim-runc-v2 -namespace moby -id <id> -address ...`
fn is_shim(cmdline: &[u8], container_id: &str) -> bool {
    let mut words = cmdline.split(|byte| *byte == 0);
    let program = words.next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let words: Vec<&[u8]> = words.collect();
    name.starts_with(b"containerd-shim")
        && words.windows(2).any(|pair| pair[0] == b"-id" && pair[1] == container_id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_own_processes_are_meant() {
        let proc = tempfile::tempdir().unwrap();
        let id = "d0".repeat(32);
        let put = |pid: &str, text: &str| {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("cgroup"), text).unwrap();
        };
        put("7", &format!("4:memory:/docker/{id}\n0::/\n"));
        put("8", &format!("0::/system.slice/docker-{id}.scope\n"));
        put("9", "0::/system.slice/docker-other.scope\n");
        put("self", &format!("0::/docker/{id}\n"));
        for (pid, program) in [("10", "/usr/bin/containerd-shim-runc-v2"), ("11", "vi")] {
            put(pid, "0::/system.slice/docker.service\n");
            let words = format!("{program}\0-namespace\0moby\0-id\0{id}\0-address\0x\0");
            fs::write(proc.path().join(pid).join("cmdline"), words).unwrap();
        }
        let mut found = processes_of(proc.path(), &id);
        found.sort_unstable();
        assert_eq!(found, [7, 8, 10]);
        assert_eq!(end("docker"), 0, "no id, no processes");
        assert!(is_left_behind("task d09bb55d: already exists"));
        let directory = "/x/io.containerd.runtime.v2.task/moby/67d355e4";
        assert!(is_left_behind(&format!("failed to start shim: mkdir {directory}: file exists")));
        assert!(!is_left_behind("name already exists"));
        assert!(!is_left_behind("failed to start shim: no such file or directory"));
    }

    #[test]
    fn task_directory_of_a_dead_engine_is_moved_aside() {
        let root = tempfile::tempdir().unwrap();
        let id = "d0".repeat(32);
        let tasks = root.path().join("io.containerd.runtime.v2.task/moby");
        let dir = tasks.join(&id);
        fs::create_dir_all(&dir).unwrap();
        let reason = format!("failed to start shim: mkdir {}: file exists: unknown", dir.display());
        assert!(!move_aside(&reason, &"d1".repeat(32)), "another container's");
        assert!(!move_aside(&format!("mkdir {}: file exists", tasks.display()), &id));
        assert!(!move_aside("task already exists", &id));
        assert!(dir.exists());
        assert!(move_aside(&reason, &id));
        assert!(!dir.exists());
        let names = fs::read_dir(&tasks).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        // containerd passes over hidden directories when it clears up.
        assert!(left.len() == 1 && left[0].starts_with(&format!("{id}-left-")), "{left:?}");
    }
}
