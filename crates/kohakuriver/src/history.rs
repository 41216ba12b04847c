//! The options that limit the history retained by the host.

use kohakuriver_host::{AuditLimits, EventLimits, History};

const DAY_MS: i64 = 24 * 3600 * 1000;
const MIB: i64 = 1024 * 1024;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "History")]
pub struct HistoryArgs {
    /// Days to keep entries of the audit log.
    #[arg(long, value_name = "DAYS", default_value_t = 730, value_parser = clap::value_parser!(i64).range(1..=36500))]
    audit_days: i64,
    /// Maximum size of the audit log in MiB; the oldest entries beyond it are removed.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(i64).range(1..=1_048_576))]
    audit_size: i64,
    /// Days to keep events of VPSes (`kohakuriver vps events`)
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(i64).range(1..=36500))]
    event_days: i64,
}

impl HistoryArgs {
    pub fn limits(&self) -> History {
        History {
            audit: AuditLimits {
                max_age_ms: self.audit_days * DAY_MS,
                max_bytes: self.audit_size * MIB,
            },
            events: EventLimits { max_age_ms: self.event_days * DAY_MS, ..EventLimits::default() },
        }
    }
}
