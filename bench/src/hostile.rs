//! An attack by one account for a minute: the latency of another account's requests meanwhile, and
//! the host's peak memory. The attacker and the node are a process of their own on the same
//! processors.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use kohakuriver_testkit::{Siege, memory};

use crate::sample::Line;

const ATTACK: Duration = Duration::from_secs(60);

/// The argument that runs this executable as the attacker.
pub const ATTACKER: &str = "attacker-of-hostile";

pub fn run() -> Vec<Line> {
    block_on(measure()).expect("a host answers while it is attacked")
}

/// The attacker's process.
pub fn attack() -> ExitCode {
    match block_on(kohakuriver_testkit::attack()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

async fn measure() -> Result<Vec<Line>> {
    let mut siege = Siege::prepare(&[ATTACKER]).await?;
    let mut quiet = Vec::new();
    for _ in 0..500 {
        quiet.push(ask(&siege).await?);
    }
    siege.begin().await?;
    let began = Instant::now();
    let mut during = Vec::new();
    while began.elapsed() < ATTACK {
        during.push(ask(&siege).await?);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    siege.end().await?;
    during.sort_unstable();
    let slow = during[during.len() * 99 / 100];
    let most = memory("VmHWM:")?;
    #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
    let most = most as f64 / f64::from(1 << 20);
    let quiet = Line::millis("GET /api/vps, nothing else goes on", &quiet);
    Ok(vec![
        Line::millis("GET /api/vps, another account does its worst", &during).against(&quiet),
        Line::millis("the same, 99th percentile", &[slow]),
        Line::new("the host's memory at most", "MiB", vec![most]),
        quiet,
    ])
}

async fn ask(siege: &Siege) -> Result<Duration> {
    let began = Instant::now();
    let answer = siege.host.get_as(&siege.alice, "/api/vps").await?;
    anyhow::ensure!(answer.status == 200, "{answer:?}");
    Ok(began.elapsed())
}
