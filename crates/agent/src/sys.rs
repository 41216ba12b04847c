//! The few system calls that no safe wrapper covers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::pty::Winsize;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::unix::AsyncFd;

/// Sets the size of a terminal, which signals its foreground processes.
#[expect(unsafe_code, reason = "TIOCSWINSZ has no safe wrapper")]
pub(crate) fn set_window_size(terminal: BorrowedFd<'_>, size: Winsize) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call, and the kernel only reads the structure behind the pointer.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes standard input the controlling terminal of the calling session leader.
#[expect(unsafe_code, reason = "TIOCSCTTY has no safe wrapper")]
pub(crate) fn take_controlling_terminal() -> io::Result<()> {
    // SAFETY: the request takes an integer, no pointer.
    if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Restores signals that the parent process ignored: a shell cannot trap a signal that it was started with ignored.
#[expect(unsafe_code, reason = "changing a disposition could break a handler that relies on it")]
pub(crate) fn default_signals() {
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGTERM,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGXFSZ,
    ] {
        // SAFETY: called between fork and exec, where no handler of ours will run again; signal(2) is safe there.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Ignores `SIGXFSZ`, so that writing beyond the file size limit is an error and does not end this process.
#[expect(unsafe_code, reason = "changing a disposition could break a handler that relies on it")]
pub(crate) fn outlive_file_size_limit() {
    // SAFETY: called before any other thread exists; nothing here handles that signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The soft limit of open files that the instance was started with; 0 where ours is the same.
static CHILDREN_FILES: AtomicU64 = AtomicU64::new(0);

/// Takes room for thousands of streams. Children get what they would have had.
pub(crate) fn raise_file_limit() {
    match kohakuriver_net::raise_file_limit() {
        Ok(before) => CHILDREN_FILES.store(before, Ordering::Relaxed),
        Err(error) => tracing::debug!(%error, "the limit of open files stays"),
    }
}

/// Gives the calling child its own limit of open files. Safe between fork and exec.
pub(crate) fn childrens_file_limit() {
    let soft = CHILDREN_FILES.load(Ordering::Relaxed);
    if soft > 0
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
    }
}

/// Registers a non-blocking descriptor with the runtime.
#[expect(unsafe_code, reason = "the runtime cannot check who owns a descriptor")]
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always returns the same descriptor and keeps it open until it is dropped, which is after
    // the registration.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Runs `prepare` in the child between fork and exec.
///
/// The closure must not allocate, lock or touch anything shared: other threads do not exist there any more.
#[expect(unsafe_code, reason = "sessions and credentials are set between fork and exec")]
pub(crate) fn before_exec<F>(command: &mut Command, prepare: F)
where
    F: FnMut() -> io::Result<()> + Send + Sync + 'static,
{
    // SAFETY: the callers (process::spawn and process::socket) pass closures of plain system calls over values made
    // before the fork; they neither allocate nor lock.
    unsafe { command.pre_exec(prepare) };
}

/// Ends a forked child at once, without what a process does at its end: that is the parent's.
#[expect(unsafe_code, reason = "a forked child must not run exit handlers")]
pub(crate) fn end_child() -> ! {
    // SAFETY: the call takes an integer and does not return.
    unsafe { libc::_exit(0) }
}

/// Collects one ended child without waiting: `pid` itself, or any with -1.
///
/// Not nix's `waitpid`, which loses the process when a real-time signal ended it.
#[expect(unsafe_code, reason = "nix cannot express every wait status")]
pub(crate) fn wait_nohang(pid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer for the length of the call.
    let ended = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    (ended > 0).then_some((ended, status))
}

/// Keeps the allocator to one arena, because the agent's memory is multiplied by the number of instances.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "mallopt has no safe wrapper")]
pub(crate) fn limit_allocator() {
    // SAFETY: called before any other thread exists; both parameters are documented tunables.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // With less, a transfer gives memory back and gets it again all the time.
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 * 1024 * 1024);
    }
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn limit_allocator() {}

/// Gives the kernel back what was freed in the middle of the heap, which the allocator alone keeps.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
pub(crate) fn return_free_memory() {
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn return_free_memory() {}
