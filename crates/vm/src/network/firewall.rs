//! Getting along with a firewall that was there before.
//!
//! What our table accepts, another one may still drop, and Docker makes the machine's `FORWARD`
//! chain drop whatever it does not know. So that chain is told to let the bridge's packets pass;
//! what may pass at all is decided in our own table. Docker, when it starts later, leaves other
//! people's rules where they are.

use super::BridgeName;
use super::command::{CommandError, finish};

const COMMENT: &str = "kohakuriver";

/// Lets the bridge's packets through every `FORWARD` chain of this machine.
pub(super) async fn accept(bridge: &BridgeName) -> Result<(), CommandError> {
    for program in programs() {
        let listed = listed(program).await?;
        for direction in ["-i", "-o"] {
            if listed.as_deref().is_some_and(|text| !text.lines().any(is(bridge, direction))) {
                change(program, "-I", bridge, direction).await?;
            }
        }
    }
    Ok(())
}

/// Takes the rules away again.
pub(super) async fn forget(bridge: &BridgeName) -> Result<(), CommandError> {
    for program in programs() {
        let listed = listed(program).await?.unwrap_or_default();
        for direction in ["-i", "-o"] {
            for _ in listed.lines().filter(|line| is(bridge, direction)(line)) {
                change(program, "-D", bridge, direction).await?;
            }
        }
    }
    Ok(())
}

/// The usual one, and the older kind's where the kernel has a table of that kind beside it.
fn programs() -> impl Iterator<Item = &'static str> {
    // Of the thread: a process may have threads in several network namespaces, tests do.
    let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
    let legacy = tables.unwrap_or_default().lines().any(|table| table == "filter");
    ["iptables"].into_iter().chain(legacy.then_some("iptables-legacy"))
}

/// The chain's rules; `None` where there is no such program, hence nobody's rules to pass.
async fn listed(program: &str) -> Result<Option<String>, CommandError> {
    match finish(&[program, "-w", "-S", "FORWARD"], "").await {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        // A kernel without that kind of tables has none that drops.
        Ok(_) | Err(CommandError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is(bridge: &BridgeName, direction: &str) -> impl Fn(&str) -> bool {
    let ours = rule(bridge, direction).join(" ");
    move |line| line.strip_prefix("-A FORWARD ").is_some_and(|line| line == ours)
}

fn rule<'a>(bridge: &'a BridgeName, direction: &'a str) -> [&'a str; 8] {
    [direction, bridge.as_str(), "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"]
}

async fn change(
    program: &str,
    act: &str,
    bridge: &BridgeName,
    direction: &str,
) -> Result<(), CommandError> {
    let argv = [&[program, "-w", act, "FORWARD"], &rule(bridge, direction)[..]].concat();
    super::command::run("tell the machine's firewall of the bridge", &argv).await.map(drop)
}
