//! The limits of a quota, as flags and as text.

use kohakuriver_api::{Held, Quota};
use kohakuriver_model::Memory;

/// Flags of a quota; limits that are not given stay unchanged.
#[derive(clap::Args, Clone, Debug, Default)]
#[group(skip)]
pub struct LimitArgs {
    /// VPSes that exist, running or not: a number, or none for no limit.
    #[arg(long, value_name = "N", value_parser = number)]
    instances: Option<Limit>,
    /// Cores of running VPSes.
    #[arg(long, value_name = "N", value_parser = number)]
    cores: Option<Limit>,
    /// Memory of running VPSes, for example 64G.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<Limit>,
    /// GPUs of running VPSes.
    #[arg(long, value_name = "N", value_parser = number)]
    gpus: Option<Limit>,
    /// GPU hours within the last 30 days.
    #[arg(long, value_name = "N", value_parser = number)]
    gpu_hours: Option<Limit>,
    /// Disks of existing virtual machines, for example 500G.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    disk: Option<Limit>,
}

/// A number, or explicitly no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(Option<u64>);

impl LimitArgs {
    /// Returns whether any flag was given.
    pub fn any(&self) -> bool {
        let all = [self.instances, self.cores, self.memory, self.gpus, self.gpu_hours, self.disk];
        all.iter().any(Option::is_some)
    }

    /// Returns the quota with the given flags applied.
    pub fn apply(&self, old: Quota) -> Quota {
        let pick = |new: Option<Limit>, old| new.map_or(old, |Limit(limit)| limit);
        Quota {
            instances: pick(self.instances, old.instances),
            cores: pick(self.cores, old.cores),
            memory_bytes: pick(self.memory, old.memory_bytes),
            gpus: pick(self.gpus, old.gpus),
            gpu_hours: pick(self.gpu_hours, old.gpu_hours),
            disk_bytes: pick(self.disk, old.disk_bytes),
        }
    }
}

fn number(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    match text.parse::<u32>() {
        Ok(number) => Ok(Limit(Some(u64::from(number)))),
        Err(_) => Err("write a number, or none for no limit".to_owned()),
    }
}

fn size(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    match Memory::parse_in('G', text) {
        Ok(memory) => Ok(Limit(Some(memory.bytes()))),
        Err(error) => Err(format!("{error}; or none for no limit")),
    }
}

/// Lists each resource with its usage and its limit, one per row.
pub fn rows(quota: &Quota, held: &Held) -> [(&'static str, String, Option<String>); 6] {
    let plain = |number: u64| number.to_string();
    let bytes = |number: u64| Memory::from_bytes(number).to_string();
    [
        ("VPSes", plain(held.instances), quota.instances.map(plain)),
        ("cores", plain(held.cores), quota.cores.map(plain)),
        ("memory", bytes(held.memory_bytes), quota.memory_bytes.map(bytes)),
        ("GPUs", plain(held.gpus), quota.gpus.map(plain)),
        ("GPU-hours in 30 days", plain(held.gpu_hours), quota.gpu_hours.map(plain)),
        ("disk", bytes(held.disk_bytes), quota.disk_bytes.map(bytes)),
    ]
}

/// Formats limits as `4 cores, 8G of memory`, or as `anything` without any.
pub fn words(quota: &Quota) -> String {
    let count = |number: Option<u64>, one: &str, many: &str| {
        number.map(|number| format!("{number} {}", if number == 1 { one } else { many }))
    };
    let bytes = |number: Option<u64>, what: &str| {
        number.map(|number| format!("{} of {what}", Memory::from_bytes(number)))
    };
    let all = [
        count(quota.instances, "VPS", "VPSes"),
        count(quota.cores, "core", "cores"),
        bytes(quota.memory_bytes, "memory"),
        count(quota.gpus, "GPU", "GPUs"),
        count(quota.gpu_hours, "GPU-hour", "GPU-hours"),
        bytes(quota.disk_bytes, "disk"),
    ];
    let words: Vec<String> = all.into_iter().flatten().collect();
    if words.is_empty() { "anything".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_sizes_or_none() {
        assert_eq!(number("4"), Ok(Limit(Some(4))));
        assert_eq!(number("none"), Ok(Limit(None)));
        assert_eq!(size("64G"), Ok(Limit(Some(64 << 30))));
        assert_eq!(size("64"), Ok(Limit(Some(64 << 30))));
        assert_eq!(size("none"), Ok(Limit(None)));
        for bad in ["", "-1", "4G", "99999999999"] {
            assert!(number(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "-1", "8X"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flag_changes_only_its_own_limit() {
        let old = Quota { cores: Some(8), gpus: Some(1), ..Quota::default() };
        let flags = LimitArgs {
            cores: Some(Limit(Some(4))),
            gpus: Some(Limit(None)),
            ..LimitArgs::default()
        };
        assert!(flags.any() && !LimitArgs::default().any());
        assert_eq!(flags.apply(old), Quota { cores: Some(4), ..Quota::default() });
        assert_eq!(LimitArgs::default().apply(old), old);
    }

    #[test]
    fn a_quota_reads_as_a_sentence() {
        let quota = Quota {
            cores: Some(4),
            memory_bytes: Some(8 << 30),
            gpus: Some(1),
            ..Quota::default()
        };
        assert_eq!(words(&quota), "4 cores, 8G of memory, 1 GPU");
        assert_eq!(words(&Quota::default()), "anything");
    }
}
