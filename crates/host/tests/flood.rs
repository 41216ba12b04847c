//! An account attacks the host; its memory stays bounded and other clients are served. The attacker is
//! a process of its own, with the node, so that this process's memory is the host's.

use std::time::{Duration, Instant};

use anyhow::Result;
use kohakuriver_testkit::{Siege, attack, memory};

const ATTACK: Duration = Duration::from_secs(60);
const MEMORY: u64 = 256 * 1024 * 1024;
/// The memory that an allocator may retain.
const KEPT: u64 = 64 * 1024 * 1024;
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_by_one_account_leaves_memory_bounded() -> Result<()> {
    let mut siege = Siege::prepare(&["--ignored", "--exact", "attacker"]).await?;
    let before = memory("VmRSS:")?;
    siege.begin().await?;
    let began = Instant::now();
    while began.elapsed() < ATTACK {
        let asked = tokio::time::timeout(LIMIT, siege.host.get_as(&siege.alice, "/api/vps"));
        let asked = asked.await??;
        assert_eq!(asked.status, 200, "{asked:?}");
        let health = tokio::time::timeout(LIMIT, siege.host.get("/api/health")).await??;
        assert_eq!(health.status, 200, "{health:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Without the pages of this unoptimized executable's file, which the kernel can drop.
    let most = memory("VmHWM:")? - memory("RssFile:")?;
    println!("before {} MiB, at most {} MiB", before >> 20, most >> 20);
    assert!(most < MEMORY, "{} MiB", most >> 20);
    // An attack that held nothing would prove nothing.
    assert!(most > before + 16 * 1024 * 1024, "{} MiB", most >> 20);
    siege.end().await?;
    // What was held is the kernel's again, not the allocator's.
    let ended = Instant::now();
    while memory("VmRSS:")? > before + KEPT {
        let now = memory("VmRSS:")?;
        assert!(ended.elapsed() < LIMIT, "{} MiB stay of {}", now >> 20, most >> 20);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "the attacker's process of the test above, which starts it"]
async fn attacker() -> Result<()> {
    attack().await
}
