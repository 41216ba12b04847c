//! Becoming QEMU: what happens in the new process before QEMU's own code runs.
//!
//! ```text
//!  runner --spawns--> launcher: own session, processors, limits, record written, user given up
//!                        '--exec--> QEMU, which outlives the runner
//! ```
//!
//! The record proves that the start happened, to whichever runner looks for it later: it is
//! written by the very process that becomes QEMU, and holds its `/proc` line, so its pid and the
//! time it was started in. A runner that dies at any moment finds a record with a process or none.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setsid, setuid};

use crate::network::inherit_tap;

/// The word that the executable takes for this role.
pub const ROLE: &str = "vm-launch";

/// How QEMU is to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// Working directory: every path in QEMU's arguments is relative to it, so that a user who
    /// cannot reach it by name can still work in it.
    pub dir: PathBuf,
    /// Written there.
    pub record: PathBuf,
    /// `None`: stays who the runner is.
    pub user: Option<u32>,
    /// What that user's process may open besides: the group of `/dev/kvm`.
    pub group: Option<u32>,
    /// The TAP that is open at [`TAP_FD`](crate::network::TAP_FD) in it.
    pub tap: Option<String>,
    /// Only on these; empty: on all.
    pub cpus: Vec<u32>,
    /// Devices that are given to it whole read and write its memory, which must stay where it is.
    pub lock_memory: bool,
}

impl Launch {
    /// The arguments from which [`parse`] makes the same again.
    pub fn to_args(&self, program: &Path, args: &[OsString]) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![ROLE.into(), self.dir.clone().into()];
        words.push(self.record.clone().into());
        let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
        words.push(number(self.user).into());
        words.push(number(self.group).into());
        words.push(self.tap.as_deref().unwrap_or("-").into());
        let cpus: Vec<String> = self.cpus.iter().map(ToString::to_string).collect();
        words.push(cpus.join(",").into());
        words.push(if self.lock_memory { "lock" } else { "-" }.into());
        words.push(program.into());
        words.extend_from_slice(args);
        words
    }
}

/// What the launcher's arguments, without its own name and role, say.
pub fn parse(words: &[OsString]) -> Option<(Launch, OsString, &[OsString])> {
    let [dir, record, user, group, tap, cpus, lock, program, args @ ..] = words else {
        return None;
    };
    let number = |word: &OsString| match word.to_str()? {
        "-" => Some(None),
        text => text.parse().ok().map(Some),
    };
    let cpus = cpus.to_str()?.split(',').filter(|text| !text.is_empty());
    let launch = Launch {
        dir: dir.into(),
        record: record.into(),
        user: number(user)?,
        group: number(group)?,
        tap: Some(tap.to_str()?).filter(|tap| *tap != "-").map(str::to_owned),
        cpus: cpus.map(str::parse).collect::<Result<_, _>>().ok()?,
        lock_memory: lock == "lock",
    };
    Some((launch, program.clone(), args))
}

/// Becomes QEMU.
///
/// # Errors
/// Only returns where that failed.
pub fn run(words: &[OsString]) -> io::Result<std::convert::Infallible> {
    let (launch, program, args) =
        parse(words).ok_or_else(|| io::Error::other("this is started by the runner only"))?;
    // Ctrl-C at the runner's terminal is not for QEMU.
    setsid()?;
    std::env::set_current_dir(&launch.dir)?;
    if !launch.cpus.is_empty() {
        let mut set = CpuSet::new();
        for cpu in &launch.cpus {
            set.set(*cpu as usize)?;
        }
        sched_setaffinity(Pid::from_raw(0), &set)?;
    }
    if launch.lock_memory {
        setrlimit(Resource::RLIMIT_MEMLOCK, nix::libc::RLIM_INFINITY, nix::libc::RLIM_INFINITY)?;
    }
    if let Some(tap) = &launch.tap {
        inherit_tap(tap)?;
    }
    write_record(&launch.record)?;
    if let Some(user) = launch.user {
        let own = Gid::from_raw(user);
        let groups: Vec<Gid> = launch.group.map(Gid::from_raw).into_iter().collect();
        setgroups(&groups)?;
        setgid(own)?;
        setuid(Uid::from_raw(user))?;
    }
    Err(Command::new(program).args(args).env_clear().exec())
}

fn write_record(path: &Path) -> io::Result<()> {
    let line = fs::read("/proc/self/stat")?;
    let temporary = path.with_extension("new");
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&line)?;
    fs::rename(temporary, path)
}

/// A process, and the moment it was started in: a pid alone comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// In the kernel's ticks since boot.
    pub start_time: u64,
}

impl Process {
    /// The one that wrote the record.
    pub fn recorded(path: &Path) -> Option<Self> {
        Self::of_line(&fs::read(path).ok()?).map(|(process, _)| process)
    }

    /// Fields 1, 3 and 22 of proc(5)'s stat. The name in parentheses is the process's own to
    /// choose, and may hold any byte.
    fn of_line(line: &[u8]) -> Option<(Self, u8)> {
        let pid = line.split(|byte| *byte == b' ').next()?;
        let pid = std::str::from_utf8(pid).ok()?.parse().ok()?;
        let end = line.iter().rposition(|byte| *byte == b')')?;
        let fields = std::str::from_utf8(&line[end + 1..]).ok()?;
        let mut fields = fields.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        Some((Self { pid, start_time }, state))
    }

    /// It still runs; one that waits to be collected by its parent does not. What cannot be told
    /// counts as running: nobody's disk is given to somebody else for a failed look.
    pub fn is_alive(self) -> bool {
        match fs::read(format!("/proc/{}/stat", self.pid)) {
            Ok(line) => Self::of_line(&line)
                .is_none_or(|(now, state)| now == self && !matches!(state, b'Z' | b'X')),
            Err(error) => {
                error.kind() != io::ErrorKind::NotFound
                    && error.raw_os_error() != Some(nix::libc::ESRCH)
            }
        }
    }

    /// Ends it at once.
    pub fn kill(self) {
        if self.is_alive() {
            let _ = nix::sys::signal::kill(Pid::from_raw(self.pid), nix::sys::signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_the_launcher_is_what_it_hears() {
        let launch = Launch {
            dir: "/a b".into(),
            record: "started".into(),
            user: Some(7),
            group: None,
            tap: Some("kr0".into()),
            cpus: vec![0, 3],
            lock_memory: true,
        };
        let args = vec![OsString::from("-name"), OsString::from("x")];
        let words = launch.to_args(Path::new("/usr/bin/qemu"), &args);
        assert_eq!(words[0], ROLE);
        let heard = parse(&words[1..]).unwrap();
        assert_eq!(heard, (launch, "/usr/bin/qemu".into(), args.as_slice()));
        assert_eq!(parse(&words[1..7]), None);
    }

    #[test]
    fn a_process_is_known_by_its_start_and_a_dead_one_is_not_alive() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("started");
        write_record(&record).unwrap();
        let this = Process::recorded(&record).unwrap();
        assert_eq!(this.pid, std::process::id().cast_signed());
        assert!(this.is_alive());
        assert!(!Process { start_time: this.start_time + 1, ..this }.is_alive());

        let mut child = Command::new("true").spawn().unwrap();
        let line = fs::read(format!("/proc/{}/stat", child.id())).unwrap();
        let (process, _) = Process::of_line(&line).unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        let odd = b"12 (a\xff) b (c) S 1 1 1 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 345 1 1";
        assert_eq!(Process::of_line(odd).unwrap().0, Process { pid: 12, start_time: 345 });
    }
}
