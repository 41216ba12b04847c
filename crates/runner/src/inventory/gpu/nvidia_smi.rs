//! NVIDIA GPUs, as `nvidia-smi` lists them: those that NVIDIA's driver has now.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kohakuriver_model::node::{Gpu, GpuVfio};
use tokio::process::Command;

/// A driver that is stuck must not hold the runner up.
const LIMIT: Duration = Duration::from_secs(10);

/// None where there is no such command, which is how a machine without NVIDIA's driver looks.
pub async fn list(pci: &Path) -> Vec<Gpu> {
    let command = Command::new("nvidia-smi")
        .args([
            "--query-gpu=index,uuid,name,pci.bus_id,memory.total",
            "--format=csv,noheader,nounits",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(LIMIT, command).await {
        Ok(Ok(output)) if output.status.success() => {
            parse(&String::from_utf8_lossy(&output.stdout), pci)
        }
        Ok(Ok(output)) => {
            tracing::warn!(status = %output.status, "nvidia-smi failed; no GPUs are offered");
            Vec::new()
        }
        Ok(Err(_)) => Vec::new(),
        Err(_) => {
            tracing::warn!("nvidia-smi did not answer; no GPUs are offered");
            Vec::new()
        }
    }
}

fn parse(text: &str, pci: &Path) -> Vec<Gpu> {
    let mut gpus: Vec<Gpu> = text.lines().filter_map(parse_line).collect();
    for gpu in &mut gpus {
        gpu.numa = numa_of(pci, &gpu.pci_address);
    }
    gpus
}

/// The kernel writes the address with four digits where `nvidia-smi` has eight, and -1 where
/// there is nothing to choose.
fn numa_of(pci: &Path, address: &str) -> Option<u32> {
    let (domain, rest) = address.split_once(':')?;
    let domain = &domain[domain.len().saturating_sub(4)..];
    let file = pci.join(format!("{domain}:{rest}")).join("numa_node");
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn parse_line(line: &str) -> Option<Gpu> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let &[index, uuid, name, pci_address, memory] = fields.as_slice() else {
        return None;
    };
    let memory_mib: u64 = memory.parse().unwrap_or(0);
    Some(Gpu {
        index: index.parse().ok()?,
        uuid: uuid.to_owned(),
        name: name.to_owned(),
        pci_address: pci_address.to_ascii_lowercase(),
        memory_bytes: memory_mib << 20,
        numa: None,
        no_container: None,
        vfio: GpuVfio::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_answer_is_read() {
        let text = "0, GPU-5c1b7f7e-0d0c-4ba6-a6a5-0d9a6c5b2f11, NVIDIA A100-SXM4-80GB, 00000000:07:00.0, 81920\n\
                    1, GPU-0f6f0c54-9f3c-e5a1-7e3c-7e2f6a1f3d22, NVIDIA GeForce RTX 4090, 00000000:0F:00.0, [N/A]\n\
                    No devices were found\n";
        let pci = tempfile::tempdir().unwrap();
        for (address, numa) in [("0000:07:00.0", "1\n"), ("0000:0f:00.0", "-1\n")] {
            let device = pci.path().join(address);
            std::fs::create_dir(&device).unwrap();
            std::fs::write(device.join("numa_node"), numa).unwrap();
        }
        let gpus = parse(text, pci.path());
        assert_eq!(gpus.len(), 2);
        assert_eq!(gpus[0].memory_bytes, 80 << 30);
        assert_eq!(gpus[1].pci_address, "00000000:0f:00.0");
        assert_eq!(gpus[1].memory_bytes, 0);
        assert_eq!((gpus[0].numa, gpus[1].numa), (Some(1), None));
    }
}
