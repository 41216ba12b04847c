//! PCI devices that are given to a machine whole, and given back whatever happens.
