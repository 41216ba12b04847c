//! Names of PCI devices, from the list that distributions install (package `pci.ids`).

use std::fs;

const LISTS: [&str; 2] = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];

/// A name for each; the numbers where the list is missing or older than the card.
pub fn lookup(devices: impl ExactSizeIterator<Item = (u16, u16)>) -> Vec<String> {
    if devices.len() == 0 {
        return Vec::new();
    }
    let list = LISTS.iter().find_map(|path| fs::read(path).ok()).unwrap_or_default();
    // Some names are not UTF-8.
    let list = String::from_utf8_lossy(&list);
    devices.map(|(vendor, device)| name(&list, vendor, device)).collect()
}

/// `10de  NVIDIA Corporation`, then `<tab>20b0  GA100 [A100 SXM4 40GB]` for each of its devices.
fn name(list: &str, vendor: u16, device: u16) -> String {
    let find = || {
        let (vendor, device) = (format!("{vendor:04x}  "), format!("\t{device:04x}  "));
        let mut lines = list.lines().skip_while(|line| !line.starts_with(&vendor));
        let maker = lines.next()?.strip_prefix(&vendor)?;
        let its = lines.take_while(|line| line.starts_with('\t') || line.starts_with('#'));
        let named = its.filter_map(|line| line.strip_prefix(&device)).next();
        Some(named.map_or_else(|| maker.to_owned(), |named| format!("{maker} {named}")))
    };
    find().unwrap_or_else(|| format!("{vendor:04x}:{device:04x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_with_its_maker() {
        let list = "# comment\n1002  AMD\n\t744c  Navi 31\n\t\t1002 0e3b  RX 7900\n\
                    10de  NVIDIA Corporation\n\t20b0  GA100\nC 03  Display controller\n";
        assert_eq!(name(list, 0x1002, 0x744c), "AMD Navi 31");
        assert_eq!(name(list, 0x10de, 0x20b0), "NVIDIA Corporation GA100");
        assert_eq!(name(list, 0x1002, 0x20b0), "AMD");
        assert_eq!(name(list, 0x8086, 1), "8086:0001");
        assert_eq!(name("", 0x10de, 1), "10de:0001");
    }
}
