//! Whether the node's kernel killed a QEMU for lack of memory: its own log says so.
//!
//! A process killed for lack of memory looks like one killed by an operator, and its cgroup counts
//! kills without naming the process. The log names it, and only the kernel writes such a record.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use kohakuriver_vm::launch::Process;

pub const OUT_OF_MEMORY: &str = "the node was out of memory, and its kernel killed this machine's \
    QEMU: start it with less, or move it to another node";

/// The kernel's longest record.
const MOST_BYTES: usize = 8 << 10;
/// Of one record's head: of the kernel itself, not of a program that wrote into its log.
const FACILITIES: u32 = 3;

/// `false` also where the log cannot be read, as by a runner that is not root.
pub fn was_killed(process: Process) -> bool {
    let log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    match log {
        Ok(log) => records(log).any(|record| reports_kill_of(&record, process)),
        Err(error) => {
            tracing::debug!(%error, "cannot read the kernel's log");
            false
        }
    }
}

/// Reads the log's records, one per read; the last is followed by an error.
fn records(mut log: File) -> impl Iterator<Item = String> {
    let mut buffer = vec![0; MOST_BYTES];
    std::iter::from_fn(move || {
        loop {
            match log.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => {
                    let record = buffer.get(..length).unwrap_or_default();
                    return Some(String::from_utf8_lossy(record).into_owned());
                }
                // What was next has been overwritten meanwhile.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    })
}

/// `PRIORITY,NUMBER,MICROSECONDS,FLAGS;MESSAGE`, see Documentation/ABI/testing/dev-kmsg.
fn reports_kill_of(record: &str, process: Process) -> bool {
    let Some((head, message)) = record.split_once(';') else { return false };
    let mut fields = head.split(',');
    let priority = fields.next().and_then(|field| field.parse::<u32>().ok());
    let at = fields.nth(1).and_then(|field| field.parse::<u64>().ok());
    let (Some(priority), Some(at_microseconds)) = (priority, at) else { return false };
    // A pid comes again: what happened before the process was is of another one. Ticks are a
    // hundredth of a second on every machine that we run on.
    let begun_microseconds = process.start_time.saturating_mul(10_000);
    let killed = message.split_once("Killed process ").and_then(|(_, rest)| {
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<i32>().ok()
    });
    priority >> FACILITIES == 0
        && at_microseconds >= begun_microseconds
        && message.contains("ut of memory")
        && killed == Some(process.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_own_word_about_this_very_process_counts() {
        let process = Process { pid: 14304, start_time: 2_555_000 };
        let reported = |record: &str| reports_kill_of(record, process);
        let rest =
            "Killed process 14304 (qemu-system-x86) total-vm:207068kB, UID:0 oom_score_adj:0";
        assert!(reported(&format!("3,991,25558531146,-;Memory cgroup out of memory: {rest}\n")));
        assert!(reported(&format!("3,991,25558531146,-,caller=T1;Out of memory: {rest}")));
        // Written by a program; before it was started; of another; of another kind.
        assert!(!reported(&format!("11,991,25558531146,-;Out of memory: {rest}")));
        assert!(!reported(&format!("3,991,25549999999,-;Out of memory: {rest}")));
        assert!(!reported("3,991,25558531146,-;Out of memory: Killed process 1430 (qemu)"));
        assert!(!reported("3,991,25558531146,-;oom-kill:task=qemu,pid=14304,uid=0"));
        assert!(!reported("nonsense") && !reported(";") && !reported("3;Out of memory: "));
    }
}
