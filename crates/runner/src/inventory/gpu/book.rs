//! The GPUs as NVIDIA's driver reported them, by PCI address: `<data>/gpus.json`.

use std::fs;
use std::io;
use std::path::Path;

use kohakuriver_model::node::{Gpu, GpuVfio};
use kohakuriver_vm::vfio::{Pci, PciAddress};
use serde::{Deserialize, Serialize};

use kohakuriver_durable as durable;

const FILE: &str = "gpus.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// In the order of the bus.
    cards: Vec<Card>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Card {
    place: PciAddress,
    /// Another card in the same place is told by these.
    vendor: u16,
    device: u16,
    uuid: String,
    name: String,
    pci_address: String,
    memory_bytes: u64,
}

impl Book {
    /// A book that is lost or damaged is written anew from what is seen; only cards that are with
    /// vfio-pci meanwhile are strangers until they come back.
    pub fn load(data: &Path) -> Self {
        let text = match fs::read(data.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(%error, "the book of this node's GPUs cannot be read");
                return Self::default();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "the book of this node's GPUs is damaged and begun anew");
            Self::default()
        })
    }

    pub fn save(&self, data: &Path) -> io::Result<()> {
        durable::write(&data.join(FILE), &serde_json::to_vec_pretty(self)?, 0o600)
    }

    pub fn place_of(&self, uuid: &str) -> Option<PciAddress> {
        self.cards.iter().find(|card| card.uuid == uuid).map(|card| card.place)
    }

    /// With what is listed now, without cards that were moved or are gone.
    pub fn updated(&self, listed: &[Gpu], pci: &Pci) -> Self {
        let ids = |place: &PciAddress| {
            pci.functions.get(place).map(|function| (function.vendor, function.device))
        };
        let mut cards: Vec<Card> = listed
            .iter()
            .filter_map(|gpu| {
                let place = gpu.pci_address.parse().ok()?;
                let (vendor, device) = ids(&place)?;
                Some(Card {
                    place,
                    vendor,
                    device,
                    uuid: gpu.uuid.clone(),
                    name: gpu.name.clone(),
                    pci_address: gpu.pci_address.clone(),
                    memory_bytes: gpu.memory_bytes,
                })
            })
            .collect();
        let missing: Vec<Card> = self
            .cards
            .iter()
            .filter(|card| ids(&card.place) == Some((card.vendor, card.device)))
            .filter(|card| !cards.iter().any(|c| c.place == card.place || c.uuid == card.uuid))
            .cloned()
            .collect();
        cards.extend(missing);
        cards.sort_by_key(|card| card.place);
        Self { cards }
    }

    /// The listed cards and those that are known from before, numbered as `nvidia-smi` would if
    /// it saw them all. The latter are marked as not for containers, for a reason to be found.
    pub fn with_missing(&self, listed: Vec<Gpu>) -> Vec<Gpu> {
        let known: Vec<Gpu> = self
            .cards
            .iter()
            .filter(|card| !listed.iter().any(|gpu| gpu.uuid == card.uuid))
            .map(|card| Gpu {
                index: 0,
                uuid: card.uuid.clone(),
                name: card.name.clone(),
                pci_address: card.pci_address.clone(),
                memory_bytes: card.memory_bytes,
                numa: None,
                no_container: Some("is not listed by nvidia-smi".to_owned()),
                vfio: GpuVfio::default(),
            })
            .collect();
        if known.is_empty() {
            return listed;
        }
        let mut all = [listed, known].concat();
        all.sort_by_key(|gpu| gpu.pci_address.parse::<PciAddress>().ok());
        for (index, gpu) in (0..).zip(&mut all) {
            gpu.index = index;
        }
        all
    }
}
