//! Test support for the host: a real host on free ports with a clock of the test's own
//! ([`TestHost`]), a provider for logging in ([`OidcProvider`]), and a runner that the test
//! controls ([`FakeRunner`]), over the real link with real certificates.

mod fake_runner;
mod flood;
mod oidc;
mod test_host;

pub use fake_runner::{AgentStream, FakeRunner, ORPHAN, Reaction, inventory, vm_inventory};
pub use flood::{Siege, Target, attack, memory};
pub use oidc::{Behavior, Browser, CLIENT_SECRET, OidcProvider};
pub use test_host::{Answer, PASSWORD, Person, TestHost};
