//! Files: sftp of one large file and of many small ones, and `vps cp` beside it.

use std::fs;
use std::path::Path;
use std::process::Command;

use kohakuriver_e2e::{run as run_command, run_with_input};

use crate::beside::Beside;
use crate::sample::{Line, timed};

const ROUNDS: usize = 3;
const SMALL_FILES: usize = 10_000;

pub fn run() -> Vec<Line> {
    let beside = Beside::start();
    let Beside { site, key, sshd, .. } = &beside;
    let config = site.path().join("vps.conf");
    site.kr(&["ssh", "config", "--output", config.to_str().expect("plain")]).ok();
    let work = site.path().join("work");
    make_files(&work);
    // Small enough for the page cache on both sides: the disk is not what is compared.
    let clean = "rm -rf /tmp/b; mkdir -p /tmp/b/up";
    let sftp = |direct: bool, batch: &str| {
        let mut command = if direct { sshd.sftp() } else { ours(&config, key) };
        run_with_input(command.arg("-q").current_dir(&work), batch.as_bytes()).ok();
    };
    let cp = |from: &str, to: &str| {
        run_command(site.command().args(["vps", "cp", from, to]).current_dir(&work)).ok();
    };
    let clear = || {
        site.kr(&["terminal", "exec", "web", "--", "sh", "-c", clean]).ok();
        for name in ["big.back", "small.back"] {
            let _ = fs::remove_file(work.join(name));
            let _ = fs::remove_dir_all(work.join(name));
        }
        fs::create_dir(work.join("small.back")).expect("it was removed");
    };
    let jobs = [
        ("put 1 GB", "put big /tmp/b/big\n", ("big", "web:/tmp/b/big")),
        ("get 1 GB", "get /tmp/b/big big.back\n", ("web:/tmp/b/big", "big.back")),
        ("put 10,000 files", "put -r small /tmp/b/up\n", ("small", "web:/tmp/b/up")),
        (
            "get 10,000 files",
            "get -r /tmp/b/up/small small.back\n",
            ("web:/tmp/b/up/small", "small.back"),
        ),
    ];
    let mut times = [const { [const { Vec::new() }; 3] }; 4];
    for _ in 0..ROUNDS {
        for tool in 0..3 {
            clear();
            for ((_, batch, (from, to)), times) in jobs.iter().zip(&mut times) {
                times[tool].push(timed(|| match tool {
                    0 => sftp(true, batch),
                    1 => sftp(false, batch),
                    _ => cp(from, to),
                }));
            }
        }
    }
    let mut lines = Vec::new();
    for ((name, ..), [direct, ours, copied]) in jobs.iter().zip(times) {
        let direct = Line::millis(format!("sftp {name}, sshd direct"), &direct);
        let ours = Line::millis(format!("sftp {name}, through us"), &ours).against(&direct);
        let copied = Line::millis(format!("vps cp {name}"), &copied).against(&direct);
        lines.extend([direct, ours, copied]);
    }
    lines
}

fn ours(config: &Path, key: &Path) -> Command {
    let mut command = Command::new("sftp");
    command.arg("-F").arg(config).arg("-i").arg(key).args(["-o", "BatchMode=yes", "web"]);
    command
}

fn make_files(work: &Path) {
    let block: Vec<u8> =
        (0..1_000_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    fs::create_dir_all(work.join("small")).expect("a fresh directory");
    fs::write(work.join("big"), block.repeat(1000)).expect("room for a gigabyte");
    for n in 0..SMALL_FILES {
        fs::write(work.join(format!("small/{n}")), &block[..1000 + n % 1000]).expect("room");
    }
}
