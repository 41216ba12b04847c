//! Which kernel modules must be loaded, and in which order: `modules.dep` read by ourselves.

use std::collections::HashMap;

/// The modules that are needed for `wanted`, relative to the modules' directory, what others
/// depend on first. What is built into the kernel needs none.
///
/// # Errors
/// With the name of the module that the kernel has in neither way.
pub fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>, String> {
    let known: HashMap<&str, (&str, Vec<&str>)> = dep
        .lines()
        .filter_map(|line| {
            let (path, needs) = line.split_once(':')?;
            Some((name(path), (path, needs.split_whitespace().collect())))
        })
        .collect();
    let mut order: Vec<String> = Vec::new();
    for module in wanted {
        let Some((path, needs)) = known.get(module) else {
            if builtin.lines().any(|path| name(path) == *module) {
                continue;
            }
            return Err((*module).to_owned());
        };
        // depmod lists all that is needed, the last one first to be loaded.
        for path in needs.iter().rev().chain([path]) {
            if !order.iter().any(|known| known == path) {
                order.push((*path).to_owned());
            }
        }
    }
    Ok(order)
}

/// `kernel/fs/fat/vfat.ko.xz` is `vfat`.
fn name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split_once(".ko").map_or(file, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let dep = "k/ring.ko.xz:\nk/virtio.ko.xz: k/ring.ko.xz\n\
                   k/blk.ko.xz: k/virtio.ko.xz k/ring.ko.xz\n\
                   k/pci.ko.xz: k/virtio.ko.xz k/ring.ko.xz\n";
        let builtin = "kernel/fs/ext4/ext4.ko\n";
        let order = load_order(dep, builtin, &["pci", "ext4", "blk"]).unwrap();
        assert_eq!(order, ["k/ring.ko.xz", "k/virtio.ko.xz", "k/pci.ko.xz", "k/blk.ko.xz"]);
        assert_eq!(load_order(dep, builtin, &["nvme"]), Err("nvme".to_owned()));
    }
}
