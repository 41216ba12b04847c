//! Chaos: random acts of people on containers and virtual machines while processes are killed,
//! cables pulled, devices removed, disks filled and clocks moved; and after each round a look
//! whether anything was lost, doubled or lied about.
//!
//! ```text
//!  round: some acts and faults in random order --mend all--> converged in time? --> invariants
//! ```
//!
//! `KOHAKURIVER_CHAOS_FAULTS` says how many faults (a short run unless given; `make chaos` asks for
//! 500). Each run takes another seed and prints it; `KOHAKURIVER_CHAOS_SEED` repeats a run.
//! With `KOHAKURIVER_CHAOS_AUTH=1` people log in, again and again; whoever was told they are in stays
//! in, and the audit log stays whole.

#![expect(clippy::unwrap_used, reason = "a test that is surprised should end there")]

mod check;
mod disk;
mod fault;
mod guest;
mod model;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use kohakuriver_e2e::Cluster;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use check::check;
use fault::Fault;
use model::Model;

/// What took longer is shown.
const SLOW: Duration = Duration::from_secs(25);
const SHORT_RUN: u32 = 10;

#[test]
fn nothing_is_lost_doubled_or_lied_about_whatever_fails_and_whenever() {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let faults =
        setting("KOHAKURIVER_CHAOS_FAULTS").map_or(SHORT_RUN, |n| u32::try_from(n).unwrap());
    let seed =
        setting("KOHAKURIVER_CHAOS_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    // Moving the machine's clock is for a machine of one's own.
    let clock = setting("KOHAKURIVER_CHAOS_CLOCK") == Some(1);
    // Past the test harness, which would keep it from who watches a run that passes.
    let line = format!("chaos: {faults} faults, KOHAKURIVER_CHAOS_SEED={seed}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let auth = setting("KOHAKURIVER_CHAOS_AUTH") == Some(1);
    let mut cluster = Cluster::start(30, auth);
    let mut logins = 0;
    let mut model = Model::default();
    let mut tally = BTreeMap::new();
    let (mut done, mut with_machines, mut round, mut slowest) = (0, 0, 0, Duration::ZERO);
    while done < faults {
        round += 1;
        let mut history = Vec::new();
        for _ in 0..random.random_range(1..4) {
            for _ in 0..random.random_range(1..5) {
                history.push(model.act(&cluster, &mut random));
            }
            let fault = Fault::random(&mut random, clock);
            // While it lasts people go on.
            let (machines, broken) = (model.machines(), fault.begin(&mut cluster, &mut model));
            history.push(format!("{fault:?} {broken}"));
            std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
            history.push(model.act(&cluster, &mut random));
            if auth && random.random_ratio(1, 2) {
                let is_in = cluster.log_in();
                history.push(format!("log in: {is_in}"));
                logins += u32::from(is_in);
            }
            fault.end(&mut cluster);
            if broken {
                let kind = format!("{fault:?}").split('(').next().unwrap_or_default().to_owned();
                *tally.entry(kind).or_insert(0) += 1;
                done += 1;
                with_machines += u32::from(machines > 0);
            }
        }
        let began = Instant::now();
        let mut trouble = check(&model, &cluster);
        while let Err(now) = &trouble
            && began.elapsed() < now.limit
        {
            std::thread::sleep(Duration::from_millis(100));
            trouble = check(&model, &cluster);
        }
        if let Err(trouble) = trouble {
            panic!(
                "after {:?}: {}\nseed {seed}, round {round}, {done} faults:\n{}\n{}",
                trouble.limit,
                trouble.what,
                history.join("\n"),
                cluster.logs()
            );
        }
        let took = began.elapsed();
        if took > SLOW {
            let (history, logs) = (history.join("\n"), cluster.logs());
            eprintln!("chaos: round {round} took {took:?}:\n{history}\n{logs}");
        }
        let audit = cluster.verify_audit();
        assert_eq!(audit.code, 0, "{audit:?}, seed {seed}, round {round}:\n{}", history.join("\n"));
        slowest = slowest.max(took);
        model.forget_uncertain(&cluster);
        if round % 10 == 0 {
            eprintln!(
                "chaos: {done} faults, {with_machines} of them with machines; {} VPSes, {} of them machines; slowest {slowest:?}",
                model.len(),
                model.machines()
            );
        }
    }
    eprintln!(
        "chaos: {done} faults ({with_machines} with machines) in {round} rounds, no violation, slowest to converge {slowest:?}"
    );
    if auth {
        eprintln!("chaos: {logins} log-ins while something was broken");
    }
    eprintln!("chaos: {tally:?}");
}
