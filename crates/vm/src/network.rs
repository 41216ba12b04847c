//! What connects machines: addresses, the bridge and its TAPs, the firewall's table.
