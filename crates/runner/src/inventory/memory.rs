//! `/proc/meminfo`.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

pub fn read() -> Option<MachineMemory> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(text: &str) -> Option<MachineMemory> {
    Some(MachineMemory {
        total_bytes: field(text, "MemTotal:")?,
        available_bytes: field(text, "MemAvailable:")?,
    })
}

/// A field in kB, anywhere in its line: NUMA nodes prefix theirs.
pub fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.split_once(name))?.1;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read() {
        let text = "MemTotal:       32843400 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\n";
        let memory = parse(text).unwrap();
        assert_eq!(memory.total_bytes, 32_843_400 * 1024);
        assert_eq!(memory.available_bytes, 20_000_000 * 1024);
        assert_eq!(parse("MemTotal: x kB"), None);
    }
}
