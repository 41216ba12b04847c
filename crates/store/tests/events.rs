//! Events of instances are bounded in length, number and age.

use kohakuriver_model::InstanceId;
use kohakuriver_store::{EventLimits, NewEvent, Store};

fn event(detail: &str) -> NewEvent {
    NewEvent { kind: "update", actor: "ann".to_owned(), detail: detail.to_owned() }
}

#[tokio::test]
async fn long_event_detail_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("host.db")).await.unwrap();
    let id = InstanceId::from_u64(7);
    store.record_event(id, &event(&"é".repeat(40_000)), 1).await.unwrap();
    let found = store.list_events(id, 10).await.unwrap();
    assert_eq!(found[0].detail, "é".repeat(500));
}

#[tokio::test]
async fn events_beyond_limit_are_removed_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("host.db")).await.unwrap();
    for n in 0..10 {
        store
            .record_event(InstanceId::from_u64(n % 2 + 1), &event(&n.to_string()), 5)
            .await
            .unwrap();
    }
    let limits = EventLimits { max_rows: 4, ..EventLimits::default() };
    assert_eq!(store.prune(limits, 6).await.unwrap(), 6);
    let left = store.list_events(InstanceId::from_u64(1), 10).await.unwrap();
    assert_eq!(left.iter().map(|event| event.detail.as_str()).collect::<Vec<_>>(), ["6", "8"]);
    assert_eq!(store.prune(limits, 6).await.unwrap(), 0);
}
