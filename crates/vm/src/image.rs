//! Base images of virtual machines: kept, imported, built.
