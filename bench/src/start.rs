//! The startup time of the executable.

use std::process::Command;

use kohakuriver_e2e::{executable, run as run_command};

use crate::sample::{Line, timed};

const ROUNDS: usize = 50;

pub fn run() -> Vec<Line> {
    let start = || {
        run_command(Command::new(executable()).arg("--version")).ok();
    };
    let samples: Vec<_> = (0..ROUNDS).map(|_| timed(start)).collect();
    vec![Line::millis("kohakuriver --version", &samples)]
}
