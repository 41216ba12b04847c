//! `kohakuriver qemu check`: tests this computer's support for virtual machines.

use std::path::Path;

use kohakuriver_cli::{Fit, GlobalArgs, Grid, Output, Tone};
use kohakuriver_model::VmAccel;
use kohakuriver_vm::accel;
use kohakuriver_vm::vfio::{Pci, Roots, is_display, refusal};
use serde::Serialize;

use crate::exit::{Exit, FAILED, NOT_READY};
use crate::host;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
It starts a tiny guest to test KVM, and changes nothing.
The exit code is 0 if this machine can run virtual machines, be it slowly.")]
pub struct CheckArgs {}

#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    /// `ok`; `missing` if virtual machines need it to run; `no` if it is optional.
    status: &'static str,
    details: String,
}

#[derive(Debug, Serialize)]
struct Gpu {
    pci_address: String,
    vendor_id: String,
    device_id: String,
    driver: Option<String>,
    iommu_group: Option<u32>,
    /// The reason why virtual machines cannot use it.
    refusal: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Check>,
    gpus: Vec<Gpu>,
}

pub fn run(_: &CheckArgs, global: &GlobalArgs) -> Result<(), Exit> {
    let out = Output::new(global.json);
    let report = host::runtime()?.block_on(look())?;
    if out.json {
        out.json(&report);
    } else {
        print(out, &report);
    }
    let missing: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| check.status == "missing")
        .map(|check| check.check)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("virtual machines cannot run on this computer: {}", missing.join(", "));
    Err(Exit::new(NOT_READY, message)
        .hint("apt-get install qemu-system-x86 qemu-utils nftables iproute2"))
}

async fn look() -> Result<Report, Exit> {
    let mut checks = Vec::new();
    let qemu = accel::find_qemu();
    checks.push(match &qemu {
        None => missing("QEMU", "not installed (qemu-system-x86)"),
        Some(program) => match accel::ask_version(program).await {
            Ok(qemu) => ok("QEMU", format!("{} ({})", qemu.version, program.display())),
            Err(reason) => missing("QEMU", reason),
        },
    });
    checks.push(kvm(qemu.as_deref()).await);
    checks.push(match cpu_flag() {
        Some(flag) => ok("CPU virtualisation", flag),
        None => no("CPU virtualisation", "neither vmx nor svm: enable it in the firmware, or on the hypervisor if this is a virtual machine itself"),
    });
    checks.push(program("qemu-img", "disks of virtual machines (qemu-utils)"));
    let root = nix::unistd::geteuid().is_root();
    for (name, what) in
        [("ip", "the bridge (iproute2)"), ("nft", "the firewall's table (nftables)")]
    {
        let found = program(name, what);
        // QEMU's user-mode network needs neither.
        checks.push(if root || found.status == "ok" {
            found
        } else {
            Check { status: "no", ..found }
        });
    }
    let firmware = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd"];
    checks.push(match firmware.iter().find(|path| Path::new(path).exists()) {
        Some(path) => ok("OVMF", *path),
        None => no("OVMF", "images that boot by UEFI cannot run (ovmf)"),
    });
    let pci = Pci::read(&Roots::default(), is_display)
        .map_err(|error| Exit::from_error(FAILED, &error))?;
    let groups: std::collections::BTreeSet<_> =
        pci.functions.values().filter_map(|function| function.group).collect();
    checks.push(if groups.is_empty() {
        no("IOMMU", "no groups: virtual machines cannot use GPUs (intel_iommu=on or amd_iommu=on on the kernel's command line)")
    } else {
        ok("IOMMU", format!("{} groups", groups.len()))
    });
    let vfio = Path::new("/sys/bus/pci/drivers/vfio-pci").exists();
    checks.push(if vfio {
        ok("VFIO", "vfio-pci is loaded")
    } else {
        no("VFIO", "vfio-pci is not loaded; the runner loads it when it needs it")
    });
    Ok(Report { checks, gpus: gpus(&pci) })
}

async fn kvm(qemu: Option<&Path>) -> Check {
    let Some(program) = qemu else { return no("KVM", "not tried without QEMU") };
    match accel::prove(program, VmAccel::Kvm).await {
        Ok(()) => ok("KVM", "a guest ran under it"),
        Err(reason) => {
            no("KVM", format!("virtual machines are emulated, about ten times slower: {reason}"))
        }
    }
}

fn gpus(pci: &Pci) -> Vec<Gpu> {
    let functions = pci.gpus.iter().filter_map(|address| pci.functions.get(address));
    let told = functions.map(|function| Gpu {
        pci_address: function.address.to_string(),
        vendor_id: format!("{:04x}", function.vendor),
        device_id: format!("{:04x}", function.device),
        driver: function.driver.clone(),
        iommu_group: function.group,
        refusal: refusal(pci, function.address).map(|refusal| refusal.to_string()),
    });
    told.collect()
}

fn print(out: Output, report: &Report) {
    let mut grid =
        Grid::new(&[("CHECK", Fit::Whole), ("STATUS", Fit::Whole), ("DETAILS", Fit::Cut)]);
    for check in &report.checks {
        let tone = match check.status {
            "ok" => Tone::Good,
            "missing" => Tone::Bad,
            _ => Tone::Plain,
        };
        let cells =
            [(Tone::Plain, check.check), (tone, check.status), (Tone::Plain, &check.details)];
        grid.row(cells.map(|(tone, text)| (tone, text.to_owned())).to_vec());
    }
    grid.print(out);
    if report.gpus.is_empty() {
        return;
    }
    out.line("");
    let mut grid = Grid::new(&[
        ("PCI ADDRESS", Fit::Whole),
        ("DEVICE", Fit::Whole),
        ("DRIVER", Fit::Whole),
        ("GROUP", Fit::Whole),
        ("FOR VMS", Fit::Cut),
    ]);
    for gpu in &report.gpus {
        let cells = [
            gpu.pci_address.clone(),
            format!("{}:{}", gpu.vendor_id, gpu.device_id),
            gpu.driver.clone().unwrap_or_else(|| "-".to_owned()),
            gpu.iommu_group.map_or("-".to_owned(), |group| group.to_string()),
            gpu.refusal.clone().unwrap_or_else(|| "yes".to_owned()),
        ];
        grid.row(cells.map(|cell| (Tone::Plain, cell)).to_vec());
    }
    grid.print(out);
}

fn cpu_flag() -> Option<&'static str> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"].into_iter().find(|flag| flags.split_whitespace().any(|word| word == *flag))
}

fn program(name: &'static str, what: &str) -> Check {
    match accel::find_program(name) {
        Some(path) => ok(name, shown(&path)),
        None => missing(name, format!("not installed: {what}")),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn ok(check: &'static str, details: impl Into<String>) -> Check {
    Check { check, status: "ok", details: details.into() }
}

fn missing(check: &'static str, details: impl Into<String>) -> Check {
    Check { check, status: "missing", details: details.into() }
}

fn no(check: &'static str, details: impl Into<String>) -> Check {
    Check { check, status: "no", details: details.into() }
}
